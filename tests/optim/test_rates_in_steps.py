"""A learning rate of its own for each Parameter inside `optimizer.step()`: as if each had a group with that rate."""

import copy
import math

import pytest
import torch
from live_models import Decoder, train, weights
from live_optimizers import OPTIMIZERS, Lion, adamw

from specdiag.errors import UsageError
from specdiag.live.attaching import attach, decays_in_force, rates_in_force
from specdiag.live.rates import divides_for_rates, is_proportional, takes_rates_in_groups

pytestmark = pytest.mark.usefixtures("one_thread")


def rate(parameter, _=None):
    return {64: 0.3, 4096: 1.7, 8192: 1.0, 5120: 4.0}[parameter.numel()]


def ratio(parameter, _=None):
    return {64: 0.5, 4096: 1.3, 8192: 2.0, 5120: 1.0}[parameter.numel()]


def settings(optimizer):
    return [{k: copy.copy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def in_groups(make, model, *, decays=False):
    """The optimizer of `make`, with a group for each Parameter at its own rate."""
    plain = make(model)
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "params": [p], "lr": group["lr"] * rate(p)}
        | ({"weight_decay": group["weight_decay"] * ratio(p)} if decays else {})
        for group in plain.param_groups
        for p in group["params"]
    ]
    made = make(model)
    made.param_groups[:] = groups
    return made


def largest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_scaled_update_is_that_of_a_group_with_this_rate(make, decays):
    model, expected = Decoder().double(), Decoder().double()
    optimizer, split = make(model), in_groups(make, expected, decays=decays)
    before = settings(optimizer)
    attach(optimizer, "rate", "test", rate)
    if decays:
        attach(optimizer, "ratio", "test", ratio)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, 10) for each in (optimizer, split)]
    train(model, optimizer, 6, schedules[0])
    train(expected, split, 6, schedules[1])
    # Adam divides by a second moment near zero and Lion takes signs: both amplify the last bit of the weights.
    assert largest(weights(model), weights(expected)) < 1e-9
    ours = settings(optimizer)
    assert [g["weight_decay"] for g in ours] == [g["weight_decay"] for g in before]
    assert [g["lr"] for g in ours] == schedules[0].get_last_lr()


@pytest.mark.parametrize("order", ["rate first", "decay first"])
def test_the_order_of_attaching_changes_no_bit(order):
    found = []
    for kinds in (["rate", "ratio"], ["ratio", "rate"] if order == "decay first" else ["rate", "ratio"]):
        model = Decoder()
        optimizer = adamw(model)
        for kind in kinds:
            attach(optimizer, kind, "test", rate if kind == "rate" else ratio)
        train(model, optimizer, 3)
        found.append(weights(model))
    assert largest(*found) == 0


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_rate_1_is_bitwise_no_rate_at_all(make):
    found = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        if attached:
            attach(optimizer, "rate", "test", lambda *_: 1.0)
        train(model, optimizer, 4)
        found.append(weights(model))
    assert largest(*found) == 0


def test_weights_in_bfloat16_have_groups_of_their_own_to_the_bit():
    model, expected = Decoder().bfloat16(), Decoder().bfloat16()
    optimizer, split = adamw(model), in_groups(adamw, expected, decays=True)
    held = optimizer.param_groups
    attach(optimizer, "rate", "test", rate)
    attach(optimizer, "ratio", "test", ratio)
    train(model, optimizer, 4)
    train(expected, split, 4)
    assert divides_for_rates(optimizer)
    assert largest(weights(model), weights(expected)) == 0
    assert optimizer.param_groups is held
    assert held[0]["lr"] == 1e-2
    assert held[0]["weight_decay"] == 0.1


class After(torch.optim.SGD):
    """Decays what it has updated, so that its step is no multiple of its learning rate."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad).mul_(1 - group["lr"] * group["weight_decay"])


class ScheduleFree(torch.optim.Optimizer):
    """arXiv 2405.15682 in short: the average is weighted by the rates so far, which the group keeps."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "total": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["total"] += group["lr"] ** 2
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                z.sub_(group["lr"] * (p.grad + group["weight_decay"] * p))
                p.lerp_(z, group["lr"] ** 2 / group["total"])


class Prodigy(torch.optim.Optimizer):
    """arXiv 2306.06101 in short: the step size of a group follows what all its Parameters did."""

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "d": 1e-2})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                start = self.state[p].setdefault("start", p.clone())
                group["d"] += group["lr"] * float((p.grad * (start - p)).abs().sum())
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["d"] * group["weight_decay"]).sub_(group["lr"] * group["d"] * p.grad)


def test_an_optimizer_that_decays_after_its_update_has_its_groups_divided():
    model, expected = Decoder().double(), Decoder().double()

    def make(m):
        return After(m.parameters(), lr=1e-2, weight_decay=0.1)

    optimizer, split = make(model), in_groups(make, expected)
    assert not is_proportional(optimizer)
    assert takes_rates_in_groups(optimizer)
    attach(optimizer, "rate", "test", rate)
    train(model, optimizer, 4)
    train(expected, split, 4)
    assert largest(weights(model), weights(expected)) == 0


@pytest.mark.parametrize("kind", [ScheduleFree, Prodigy])
def test_an_optimizer_whose_step_goes_by_the_rates_of_all_is_refused_and_unchanged(kind):
    model = Decoder()
    optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(UsageError, match=r"updates by no multiple of its learning rate .a probe on small tensors"):
        attach(optimizer, "rate", "test", rate)
    assert optimizer.state_dict() == before
    assert "step" not in vars(optimizer)


class NoRate(torch.optim.Optimizer):
    """Sets its step size by itself."""

    def step(self, closure=None):
        pass


def test_an_optimizer_without_a_rate_or_without_a_decay():
    model = Decoder()
    with pytest.raises(UsageError, match="groups without 'lr': there is no lr to change"):
        attach(NoRate(model.parameters(), {"weight_decay": 0.1}), "rate", "test", rate)

    class NoDecay(NoRate):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * p.grad)

    model, expected = Decoder().double(), Decoder().double()
    optimizer, split = NoDecay(model.parameters(), 1e-2), in_groups(lambda m: NoDecay(m.parameters(), 1e-2), expected)
    attach(optimizer, "rate", "test", rate)
    train(model, optimizer, 3)
    train(expected, split, 3)
    assert largest(weights(model), weights(expected)) < 1e-9
    assert set(decays_in_force(optimizer).values()) == {0.0}
    assert rates_in_force(optimizer) == {p: rate(p) for p in model.parameters()}


def test_a_step_that_raises_leaves_groups_and_weights_and_may_be_called_again():
    class Raises(torch.optim.AdamW):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise RuntimeError("out of memory")
            return super().step(closure)

    model, expected = Decoder(), Decoder()
    optimizer = Raises(model.parameters(), lr=1e-2, weight_decay=0.1)
    attach(optimizer, "rate", "test", rate)
    attach(optimizer, "ratio", "test", ratio)
    before = weights(model)
    optimizer.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        train(model, optimizer, 1)
    assert largest(weights(model), before) == 0
    optimizer.fails = False
    optimizer.zero_grad()
    train(model, optimizer, 1)
    other = adamw(expected)
    attach(other, "rate", "test", rate)
    attach(other, "ratio", "test", ratio)
    train(expected, other, 1)
    assert largest(weights(model), weights(expected)) == 0


def test_missing_gradients_and_a_closure():
    model, expected = Decoder().double(), Decoder().double()
    optimizer, split = adamw(model), in_groups(adamw, expected)
    attach(optimizer, "rate", "test", rate)
    for own, of in ((optimizer, model), (split, expected)):
        torch.manual_seed(0)
        of(torch.randint(80, (2, 8))).loss.backward()
        of.lm_head.weight.grad = None
        own.step()
        own.zero_grad()

        def closure(own=own, of=of):
            torch.manual_seed(1)
            loss = of(torch.randint(80, (2, 8))).loss
            loss.backward()
            return loss

        own.step(closure)
    assert largest(weights(model), weights(expected)) < 1e-9


def test_a_second_owner_of_the_rates_is_refused():
    model = Decoder()
    optimizer = adamw(model)
    _, detach = attach(optimizer, "rate", "AlphaLR", rate)
    with pytest.raises(UsageError, match="AlphaLR already sets the learning rate of this optimizer"):
        attach(optimizer, "rate", "other", rate)
    detach()
    attach(optimizer, "rate", "other", rate)


def test_a_learning_rate_that_is_a_tensor():
    model, expected = Decoder().double(), Decoder().double()
    optimizer = adamw(model, lr=torch.tensor(1e-2), foreach=False)
    attach(optimizer, "rate", "test", rate)
    train(model, optimizer, 3)
    train(expected, in_groups(lambda m: adamw(m, lr=torch.tensor(1e-2), foreach=False), expected), 3)
    assert largest(weights(model), weights(expected)) < 1e-6  # the rate itself is float32


def test_lion_and_a_copy_of_an_optimizer_keep_their_state():
    model = Decoder()
    optimizer = Lion(model.parameters(), lr=1e-3, weight_decay=0.1)
    attach(optimizer, "rate", "test", rate)
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    assert [g["lr"] for g in state["param_groups"]] == [1e-3]
    optimizer.load_state_dict(state)
    train(model, optimizer, 1)
    assert all(math.isfinite(float(p.detach().sum())) for p in model.parameters())
