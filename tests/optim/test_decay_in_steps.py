"""A decay applied beside the step leaves no trace: user's gradients, groups and weights, also where a step raises."""

import pytest
import torch
from decay_optimizers import FOREIGN
from live_models import Decoder, Q, train, weights
from live_optimizers import OPTIMIZERS, adamw
from torch.optim.optimizer import register_optimizer_step_post_hook

from specdiag import UsageError
from specdiag.live.attaching import attach, decays_in_force
from specdiag.optim import AlphaDecay, WeightwiseDecay

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {**OPTIMIZERS, "stacked": lambda m: FOREIGN["stacked Muon and AdamW"](m, 0.1)}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def doubled(parameter, _):
    return 2.0 if parameter.ndim == 2 else 1.0


def backward(model, seed=0):
    torch.manual_seed(seed)
    loss = model(torch.randint(80, (2, 8))).loss
    loss.backward()
    return loss


def failing(kind):
    """The class with a step that raises, or returns, before its update while `fails` says so."""

    class Failing(kind):
        fails = None

        def step(self, closure=None):
            if closure is not None:
                with torch.enable_grad():
                    closure()
            if self.fails is not None:
                return self.fails()
            return super().step()

    return Failing


def failing_twin(make, model):
    optimizer = make(model)
    optimizer.__class__ = failing(type(optimizer))
    optimizer._patch_step_function()
    return optimizer


@each_kind
def test_gradients_and_groups_are_the_users_after_a_step(make):
    model = Decoder()
    optimizer = make(model)
    attach(optimizer, "ratio", "test", doubled)
    backward(model)
    held = [(p.grad, p.grad.clone()) for p in model.parameters()]
    groups = [dict(group) for group in optimizer.param_groups]
    list_of_groups = optimizer.param_groups
    optimizer.step()
    for p, (gradient, values) in zip(model.parameters(), held, strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, values)
    assert optimizer.param_groups is list_of_groups
    assert [dict(group) for group in optimizer.param_groups] == groups


@each_kind
@pytest.mark.parametrize("raises", [True, False])
def test_a_step_that_raises_or_skips_has_not_decayed_and_can_be_called_again(make, raises):
    class Failed(Exception):
        pass

    def fail():
        if raises:
            raise Failed

    runs = []
    for fails in (False, True):
        model = Decoder()
        optimizer = failing_twin(make, model)
        attach(optimizer, "ratio", "test", doubled)
        train(model, optimizer, 1)
        backward(model, seed=7)
        if fails:
            before, gradients = weights(model), [p.grad for p in model.parameters()]
            layout = [dict(group) for group in optimizer.param_groups]
            optimizer.fails = fail
            for _ in range(2):
                if raises:
                    with pytest.raises(Failed):
                        optimizer.step()
                else:
                    optimizer.step()
                assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
                assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
                assert [dict(group) for group in optimizer.param_groups] == layout
            optimizer.fails = None
        optimizer.step()
        runs.append(weights(model))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


@pytest.mark.parametrize("name", ["AdamW fused", "AdamW foreach", "Adam", "SGD"])
def test_a_closure_sees_weights_gradients_and_groups_as_they_are(name):
    runs = []
    for with_closure in (False, True):
        model = Decoder()
        optimizer = KINDS[name](model)
        attach(optimizer, "ratio", "test", doubled)
        for step in range(3):
            if with_closure:
                before = weights(model)

                def closure(model=model, optimizer=optimizer, before=before, step=step):
                    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
                    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
                    optimizer.zero_grad()
                    return backward(model, seed=step)

                optimizer.step(closure)
            else:
                optimizer.zero_grad()
                backward(model, seed=step)
                optimizer.step()
        runs.append(weights(model))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


def test_weights_that_a_step_moves_between_two_closures_decay_once():
    """As in sharpness-aware minimisation: gradients of perturbed weights, then the step from where they were."""

    class Sharpness(torch.optim.AdamW):
        @torch.no_grad()
        def step(self, closure):
            with torch.enable_grad():
                closure()
            moves = [(p, p.grad.sign() * 0.01) for group in self.param_groups for p in group["params"]]
            for p, move in moves:
                p.add_(move)
            with torch.enable_grad():
                closure()
            for p, move in moves:
                p.sub_(move)
            super().step()

    def run(factor):
        p = torch.nn.Parameter(torch.ones(64, 64))
        optimizer = Sharpness([p], lr=1e-2, weight_decay=0.1)
        if factor is not None:
            attach(optimizer, "ratio", "test", lambda *_: factor)
        for _ in range(3):
            optimizer.step(lambda: setattr(p, "grad", torch.ones_like(p)))
        return p.detach()

    torch.testing.assert_close(run(1.0 + 1e-12), run(None), rtol=3e-7, atol=0)


@pytest.mark.parametrize("fused", ["AdamW", "Adam", "SGD"])
@pytest.mark.parametrize("infinite", [False, True])
def test_what_a_gradient_scaler_leaves_on_a_fused_optimizer_is_read(fused, infinite):
    runs = []
    for attached in (False, True):
        model = Decoder()
        decay = 0.1 if attached else 0.2
        optimizer = getattr(torch.optim, fused)(model.parameters(), lr=1e-2, weight_decay=decay, fused=True)
        if attached:
            attach(optimizer, "ratio", "test", lambda *_: 2.0)
        start = weights(model)
        for step in range(2):
            optimizer.zero_grad()
            (backward_loss(model, step) * 1024).backward()
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(float(infinite))
            optimizer.step()
        runs.append(weights(model))
    plain, ours = runs
    assert all(torch.equal(ours[n], start[n]) for n in ours) == infinite
    # Adam divides by the size of the gradient, so that the rounding of a small one shows.
    assert max(float((ours[n] - plain[n]).abs().max()) for n in plain) <= 1e-5


def backward_loss(model, step):
    torch.manual_seed(step)
    return model(torch.randint(80, (2, 8))).loss


@pytest.mark.parametrize("name", ["AdamW for-loop", "Adam", "SGD"])
def test_tensors_as_lr_and_decay_are_read_and_never_written(name):
    model = Decoder()
    optimizer = KINDS[name](model)
    (group,) = optimizer.param_groups
    lr = group["lr"] = torch.tensor(1e-2)
    decay = group["weight_decay"] = torch.tensor(0.1)
    attach(optimizer, "ratio", "test", doubled)
    other = Decoder()
    twice = KINDS[name](other)
    (whole,) = twice.param_groups
    twice.param_groups = [
        whole | {"params": [p], "lr": lr.clone(), "weight_decay": decay * doubled(p, whole)} for p in whole["params"]
    ]
    train(model, optimizer, 2)
    train(other, twice, 2)
    assert group["lr"] is lr
    assert group["weight_decay"] is decay
    assert (lr.item(), decay.item()) == (pytest.approx(1e-2), pytest.approx(0.1))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [make for name, make in KINDS.items() if name not in ("Lion", "stacked")])
def test_parameters_without_gradient_keep_their_bits(make):
    model = Decoder()
    optimizer = make(model)
    attach(optimizer, "ratio", "test", doubled)
    backward(model)
    model.layers[0].self_attn.q_proj.weight.grad = None
    before = weights(model)
    optimizer.step()
    after = weights(model)
    assert torch.equal(before[Q], after[Q])
    other = "layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[other], after[other])


def test_weights_below_float32_are_left_to_the_arithmetic_of_the_optimizer():
    """A factor would be rounded before the update is: a fused step keeps decay that a factor alone would lose."""
    runs = []
    for attached in (False, True):
        model = Decoder().bfloat16()
        optimizer = adamw(model, lr=3e-4, fused=True)
        if attached:
            attach(optimizer, "ratio", "test", doubled)
        else:
            (group,) = optimizer.param_groups
            optimizer.param_groups = [
                group | {"params": [p], "weight_decay": 0.1 * doubled(p, group)} for p in group["params"]
            ]
        train(model, optimizer, 5)
        runs.append(weights(model))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


def test_decay_that_is_lost_in_groups_that_cannot_be_divided_is_said():
    model = Decoder()
    optimizer = FOREIGN["stacked Muon and AdamW"](model, 0.1)
    model.embed_tokens.bfloat16()
    attach(optimizer, "ratio", "test", lambda *_: 1.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match=r"decay of 1.5e-03 a step is lost in weights of torch.bfloat16.*float32"):
        optimizer.step()


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_alpha_decay_serves_optimizers_of_other_structures(make):
    model = Decoder()
    optimizer = make(model, 0.1)
    decay = AlphaDecay(model, optimizer, measure_first=True)
    train(model, optimizer, 2, decay=decay)
    assert max(decay.ratios.values()) == 3.0
    in_force, named = decays_in_force(optimizer), dict(model.named_parameters())
    assert {n: in_force[named[n]] for n in decay.ratios} == pytest.approx({n: 0.1 * r for n, r in decay.ratios.items()})


def test_a_decay_for_each_weight_needs_a_law():
    model = Decoder()
    with pytest.raises(UsageError, match="no law that could be applied to each weight"):
        WeightwiseDecay(model, torch.optim.Adafactor(model.parameters(), lr=1e-2, weight_decay=0.1))


def test_a_loaded_state_is_asked_about_anew():
    """It may bring settings with which the optimizer decays in another way."""
    model = Decoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    attach(optimizer, "ratio", "test", lambda *_: 2.0)
    train(model, optimizer, 1)
    loaded = optimizer.state_dict()
    loaded["param_groups"][0]["decoupled_weight_decay"] = True
    optimizer.load_state_dict(loaded)
    other = Decoder()
    expected = torch.optim.Adam(other.parameters(), lr=1e-2, weight_decay=0.2)
    train(other, expected, 1)
    expected.param_groups[0]["decoupled_weight_decay"] = True
    for each, own in ((model, optimizer), (other, expected)):
        train(each, own, 1, start=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("scheduled", [False, True])
def test_detaching_leaves_the_optimizer_as_it_was(scheduled):
    model = Decoder()
    optimizer = adamw(model)
    if scheduled:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    before, step = set(vars(optimizer)), vars(optimizer).get("step")
    _, detach = attach(optimizer, "ratio", "test", doubled)
    train(model, optimizer, 1)
    detach()
    assert set(vars(optimizer)) - {"_opt_called"} == before
    assert vars(optimizer).get("step") is step
    assert not optimizer._optimizer_step_pre_hooks


def test_no_hook_of_others_hears_of_the_question():
    calls = []
    model = Decoder()
    optimizer = adamw(model)
    optimizer.register_step_post_hook(lambda *_: calls.append("its own"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    try:
        attach(optimizer, "ratio", "test", doubled)
        assert calls == []
        train(model, optimizer, 1)
        assert sorted(calls) == ["global", "its own"]
    finally:
        handle.remove()
