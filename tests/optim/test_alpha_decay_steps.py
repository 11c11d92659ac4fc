"""AlphaDecay inside `optimizer.step()`: exceptions, closures, and what optimizers keep in their groups."""

import pytest
import torch
from live_models import Decoder, Q, decays_of_a_step, train, weights
from live_optimizers import Lion, adamw

from specdiag.optim import AlphaDecay

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_exception_inside_step_leaves_no_trace():
    model = Decoder()
    optimizer = adamw(model)
    train(model, optimizer, 2, decay=AlphaDecay(model, optimizer, measure_first=True))
    layout = optimizer.state_dict()["param_groups"]

    class Failed(Exception):
        pass

    def closure():
        raise Failed

    for look in (optimizer.state_dict, lambda: train(model, optimizer, 1)):
        with pytest.raises(Failed):
            optimizer.step(closure)
        look()
        assert optimizer.state_dict()["param_groups"] == layout
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_has_the_users_groups_and_what_it_sets_acts_at_once(keyword):
    """As in Lightning, where the whole training step is a closure, and may follow a decay schedule of its own."""
    model, expected = Decoder(), Decoder()
    optimizer = adamw(model)
    held = optimizer.param_groups
    decay = AlphaDecay(model, optimizer, measure_first=True)

    def gradients(of):
        torch.manual_seed(0)
        loss = of(torch.randint(80, (2, 8))).loss
        loss.backward()
        return loss

    def closure():
        assert optimizer.param_groups is held
        decay.step(0)
        held[0]["weight_decay"] = 0.2
        return gradients(model)

    assert (optimizer.step(closure=closure) if keyword else optimizer.step(closure)) > 0
    assert optimizer.param_groups is held
    assert held[0]["weight_decay"] == 0.2
    assert max(decay.ratios.values()) == 3.0
    parameters = [
        {"params": [p], "weight_decay": 0.2 * decay.ratios.get(name, 1.0)} for name, p in expected.named_parameters()
    ]
    gradients(expected)
    torch.optim.AdamW(parameters, lr=1e-2).step()
    ours, expected = weights(model), weights(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_closure_that_runs_twice_and_one_that_is_left_unused():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            with torch.enable_grad():
                closure()
            return super().step(closure)

    model = Decoder()
    optimizer = Twice(model.parameters(), lr=1e-2, weight_decay=0.1)
    AlphaDecay(model, optimizer, measure_first=True).step(0)
    calls = []
    optimizer.step(lambda: calls.append(len(optimizer.param_groups)))
    assert calls == [1, 1]
    assert optimizer.param_groups[0]["count"] == 1
    assert len(optimizer.param_groups) == 1
    lion = Lion(model.parameters(), lr=1e-3, weight_decay=0.1)
    decay = AlphaDecay(model, lion, measure_first=True)
    decay.step(0)
    seen = decays_of_a_step(lion, model)
    model(torch.randint(80, (2, 8))).loss.backward()
    lion.step(lambda: None)
    assert seen[Q] == pytest.approx(0.1 * decay.ratios[Q])


def test_what_an_optimizer_writes_into_its_groups_stays():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            super().step(closure)

    model = Decoder()
    torch.optim.SGD(model.parameters())  # from here on super().step() runs the hooks too
    optimizer = Counting(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 3, decay=AlphaDecay(model, optimizer, measure_first=True))
    assert optimizer.param_groups[0]["count"] == 3


def test_what_an_optimizer_keeps_for_each_group_is_that_of_the_whole_group():
    class Summing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                group["total"] = sum(float(p.detach().sum()) for p in group["params"])

    model = Decoder()
    optimizer = Summing(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 1, decay=AlphaDecay(model, optimizer, measure_first=True))
    (group,) = optimizer.param_groups
    assert group["total"] == sum(float(p.detach().sum()) for p in model.parameters())
