"""AWD, AdaDecay and Renormalized AdamW: published values, and what a torch optimizer must do."""

import copy
import io

import pytest
import torch
from live_models import Decoder, Q, train, weights

from specdiag import UsageError
from specdiag.live.attaching import attach
from specdiag.optim import AWD, AdaDecay, AlphaDecay, RenormalizedAdamW
from specdiag.optim.optimizers.ada_decay import thetas

MAKE = {
    "AWD": lambda m: AWD(m.parameters(), lr=0.05, weight_decay=0.02),
    "AdaDecay": lambda m: AdaDecay(m.parameters(), lr=0.05, weight_decay=0.1),
    "RenormalizedAdamW": lambda m: RenormalizedAdamW(m.parameters(), lr=1e-2, weight_decay=0.1),
}
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def parameter(values, gradient):
    made = torch.nn.Parameter(tensor(values))
    made.grad = tensor(gradient)
    return made


class Straight(RenormalizedAdamW):
    """Adam without its moments: the direction is the gradient."""

    def _directions(self, group, parameters):
        return [p.grad for p in parameters]


def test_awd_by_hand():
    """decay-methods D1: decay over gradient 0.02, |g| = 1, |w| = 5."""
    p = parameter([3.0, 4.0], [0.6, 0.8])
    optimizer = AWD([p], lr=1e-9, momentum=0.0, weight_decay=0.02)
    for expected in (0.0036, 0.00396, 0.003996):
        optimizer.step()
        group = optimizer.param_groups[0]
        assert group["gradient_ratio"] * group["weight_decay"] == pytest.approx(expected, rel=1e-6)
        assert group["weight_decay"] == 0.02


def test_awd_takes_the_norms_of_all_and_decays_who_has_decay():
    w, bias = parameter([[3.0, 4.0]], [[0.6, 0.8]]), parameter([12.0], [0.0])
    optimizer = AWD([{"params": [w]}, {"params": [bias], "weight_decay": 0.0}], lr=0.1, momentum=0.0)
    optimizer.step()
    decay = 0.02 * 0.9 * 1 / 13
    expected = tensor([[3.0, 4.0]]) - 0.1 * (tensor([[0.6, 0.8]]) + decay * tensor([[3.0, 4.0]]))
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-9)
    assert bias.item() == 12


def test_ada_decay_by_hand():
    """decay-methods D2."""
    g = [1.0, -2.0, 3.0, -4.0]
    theta = tensor([0.0092968909, 0.2864264741, 1.7135735259, 1.9907031091])
    torch.testing.assert_close(thetas(tensor(g)), theta, rtol=0, atol=1e-7)
    p = parameter([1.0, 1.0, 1.0, 2.0], g)
    AdaDecay([p], lr=0.1, weight_decay=0.5).step()
    expected = tensor([1.0, 1.0, 1.0, 2.0]) * (1 - 0.05 * theta) - 0.1 * tensor(g)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-7)


def test_ada_decay_of_equal_gradients_is_plain_decay():
    torch.testing.assert_close(thetas(tensor([2.0, -2.0, 2.0])), torch.ones(3, dtype=torch.float64))
    assert thetas(tensor(3.0)) == 1


def test_renormalized_by_hand():
    """decay-methods N1."""
    p = parameter([[3.0, 4.0]], [[1.0, -0.5]])
    Straight([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), tensor([[2.7492566563, 3.8489593188]]), rtol=0, atol=1e-9)


def test_renormalized_leaves_vectors_and_zeros_to_adamw():
    vector, zero = parameter([3.0, 4.0], [1.0, -0.5]), parameter([[0.0, 0.0]], [[1.0, -0.5]])
    Straight([vector, zero], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(vector.detach(), tensor([2.75, 3.85]))
    torch.testing.assert_close(zero.detach(), tensor([[-0.1, 0.05]]))


def test_renormalized_vectors_take_the_step_of_adamw():
    """The published step W1."""
    ours, torchs = parameter([1.0, -2.0], [0.1, 0.2]), parameter([1.0, -2.0], [0.1, 0.2])
    kinds = ((RenormalizedAdamW, ours), (torch.optim.AdamW, torchs))
    pairs = [(p, kind([p], lr=0.01, weight_decay=0.1)) for kind, p in kinds]
    for gradient in ([0.1, 0.2], [0.3, -0.1]):
        for p, optimizer in pairs:
            p.grad = tensor(gradient)
            optimizer.step()
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.detach(), tensor([0.978833190220, -2.008655369729]), rtol=0, atol=1e-9)


def test_checkpoints_of_adamw_load_and_go_back():
    model = Decoder(layers=1)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, adamw, 2)
    ours = RenormalizedAdamW(model.parameters(), lr=1.0)
    ours.load_state_dict(copy.deepcopy(adamw.state_dict()))
    train(model, ours, 1, start=2)
    adamw.load_state_dict(ours.state_dict())
    train(model, adamw, 1, start=3)
    assert {float(state["step"]) for state in adamw.state.values()} == {4}


@every
def test_interrupted_equals_uninterrupted_to_the_bit_under_a_scheduler(make):
    def build(seed=0):
        model = Decoder(layers=1, seed=seed)
        optimizer = make(model)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)

    model, optimizer, scheduler = build()
    train(model, optimizer, 5, scheduler)
    first = build()
    train(*first[:2], 2, first[2])
    saved = io.BytesIO()
    torch.save([each.state_dict() for each in first], saved)
    saved.seek(0)
    second = build(seed=1)
    for each, state in zip(second, torch.load(saved), strict=True):
        each.load_state_dict(state)
    assert second[1].state_dict()["param_groups"] == first[1].state_dict()["param_groups"]
    torch.testing.assert_close(second[1].state_dict()["state"], first[1].state_dict()["state"], rtol=0, atol=0)
    train(*second[:2], 3, second[2], start=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), second[0].parameters(), strict=True))


@every
def test_it_learns_by_closures(make):
    model = Decoder(layers=1)
    optimizer = make(model)
    torch.manual_seed(0)
    batch = torch.randint(80, (4, 8))
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(15)]
    assert losses[-1] < losses[0]
    assert len(calls) == 15


@every
def test_no_gradient_no_change_and_odd_shapes_and_bfloat16(make):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)).bfloat16()
    optimizer = make(model)
    optimizer.step()
    before = weights(model)
    for name, p in model.named_parameters():
        p.grad = None if name == "2.weight" else torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert p.isfinite().all()
        assert torch.equal(p, before[name]) == (name == "2.weight")


@every
def test_ratio_2_decays_that_parameter_more_and_changes_no_other(make):
    runs = []
    for attached in (False, True):
        model = Decoder(layers=1).double()
        optimizer = make(model)
        train(model, optimizer, 2)
        if attached:
            wanted = dict(model.named_parameters())[Q]
            attach(optimizer, "ratio", "test", lambda p, _, wanted=wanted: 2.0 if p is wanted else 1.0)
        train(model, optimizer, 1, start=2)
        assert len(optimizer.param_groups) == 1
        runs.append(weights(model))
    plain, ours = runs
    assert all(torch.equal(plain[name], ours[name]) for name in plain if name != Q)
    assert ours[Q].norm() < plain[Q].norm()


@every
def test_alpha_decay_attaches(make):
    model = Decoder(layers=1)
    optimizer = make(model)
    train(model, optimizer, 3, decay=AlphaDecay(model, optimizer, measure_first=True))


@every
def test_numbers_below_zero_are_refused(make):
    kind = type(make(Decoder(layers=1)))
    with pytest.raises(UsageError, match=r"lr=-1\.0 must be at least 0"):
        kind(Decoder(layers=1).parameters(), lr=-1.0)
    with pytest.raises(UsageError, match=r"weight_decay=-1\.0 must be at least 0"):
        kind(Decoder(layers=1).parameters(), weight_decay=-1.0)


def test_betas_out_of_range_are_refused():
    with pytest.raises(UsageError, match=r"betas=\(0\.9, 1\.0\) must lie in \[0, 1\)"):
        RenormalizedAdamW(Decoder(layers=1).parameters(), betas=(0.9, 1.0))
