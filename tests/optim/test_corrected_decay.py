"""AdamC and ScionC on stock optimizers, alone and with AlphaDecay."""

import math

import pytest
import torch
from live_models import Decoder, Q, decays_of_a_step, train, weights
from live_optimizers import adamw

from specdiag import UsageError
from specdiag.optim import AlphaDecay, CorrectedDecay

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_published_step_of_adamc():
    """decay-methods W2: lr 0.0025 of 0.01, decay 0.1, theta (1, -2), g (0.1, 0.2)."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)).double()
    hidden, output = model[0].weight, model[1].weight
    with torch.no_grad():
        for weight in (hidden, output):
            weight.copy_(torch.tensor([[1.0, -2.0], [1.0, -2.0]]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0025, weight_decay=0.1)
    CorrectedDecay(optimizer, model, peak_lr=0.01)
    for weight in (hidden, output):
        weight.grad = torch.tensor([[0.1, 0.2], [0.1, 0.2]], dtype=torch.float64)
    optimizer.step()
    expected = torch.tensor([0.99743750025, -2.002374999875], dtype=torch.float64)
    torch.testing.assert_close(hidden.detach()[0], expected, rtol=0, atol=1e-9)
    plain = expected - (0.1 - 0.025) * 0.0025 * torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(output.detach()[0], plain, rtol=0, atol=1e-9)


def test_the_decay_follows_the_schedule_in_hidden_matrices_alone():
    model = Decoder()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
        ],
        milestones=[4],
    )
    CorrectedDecay(optimizer, model)
    seen = decays_of_a_step(optimizer, model)
    for step in range(9):
        lr = optimizer.param_groups[0]["lr"]
        train(model, optimizer, 1, scheduler, start=step)
        assert seen[Q] == pytest.approx(0.1 * lr / 1e-2)
        assert seen["lm_head.weight"] == seen["embed_tokens.weight"] == seen["norm.weight"] == 0.1
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_a_tied_head_is_not_corrected():
    model = Decoder(tied=True)
    optimizer = adamw(model, lr=5e-3)
    CorrectedDecay(optimizer, model, peak_lr=1e-2)
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 1)
    assert seen["embed_tokens.weight"] == 0.1
    assert seen[Q] == 0.05


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_scionc_follows_a_scheduled_momentum(momentum):
    model = Decoder()
    optimizer = torch.optim.Muon([p for p in model.layers.parameters() if p.ndim == 2], lr=1e-2, momentum=0.9)
    CorrectedDecay(optimizer, model, rule="scionc", peak_lr=1e-2)
    optimizer.param_groups[0]["momentum"] = momentum
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 1)
    assert seen[Q] == pytest.approx(0.1 * {0.9: 1.0, 0.5: 3 / 19}[momentum])


def test_scionc_of_a_resumed_run_takes_the_first_momentum():
    model = Decoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.5, weight_decay=0.1)
    CorrectedDecay(optimizer, model, rule="scionc", peak_lr=1e-2, momentum=0.9)
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 1)
    assert seen[Q] == pytest.approx(0.1 * 3 / 19)


def test_it_composes_with_alpha_decay_in_either_order_to_the_bit():
    runs = []
    for first in ("alpha", "corrected"):
        model = Decoder()
        optimizer = adamw(model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        corrected = CorrectedDecay(optimizer, model) if first == "corrected" else None
        decay = AlphaDecay(model, optimizer, every=2)
        corrected = corrected or CorrectedDecay(optimizer, model)
        seen = decays_of_a_step(optimizer, model)
        train(model, optimizer, 5, scheduler, decay)
        assert seen[Q] == pytest.approx(0.1 * decay.ratios[Q] * lr_of_step(4), rel=1e-9)
        corrected.detach()
        seen_alone = decays_of_a_step(optimizer, model)
        train(model, optimizer, 1, scheduler, decay, start=5)
        assert seen_alone[Q] == 0.1 * decay.ratios[Q]
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def lr_of_step(step):
    return (1 + math.cos(math.pi * step / 8)) / 2


def test_an_unknown_peak_is_refused_when_the_step_comes():
    model = Decoder()
    optimizer = adamw(model)
    CorrectedDecay(optimizer, model)
    with pytest.raises(UsageError, match=r"largest learning rate.*peak_lr=\.\.\."):
        train(model, optimizer, 1)
    assert len(optimizer.param_groups) == 1


def test_a_rate_above_the_peak_is_refused():
    model = Decoder()
    optimizer = adamw(model, lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-3, 1e-2, step_size_up=4, cycle_momentum=False)
    CorrectedDecay(optimizer, model)
    with pytest.raises(UsageError, match=r"above the peak 0\.001: give peak_lr"):
        train(model, optimizer, 3, scheduler)


def test_one_cycle_says_its_peak():
    model = Decoder()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=10, cycle_momentum=False)
    with CorrectedDecay(optimizer, model):
        seen = decays_of_a_step(optimizer, model)
        train(model, optimizer, 1, scheduler)
        assert seen[Q] == pytest.approx(0.1 / 25)
    train(model, optimizer, 1, scheduler)
    assert seen[Q] == 0.1


def test_bad_options():
    model = Decoder()
    optimizer = adamw(model)
    with pytest.raises(UsageError, match="unknown rule='adam'; choose from adamc, scionc"):
        CorrectedDecay(optimizer, model, rule="adam")
    with pytest.raises(UsageError, match="peak_lr=0 must be"):
        CorrectedDecay(optimizer, model, peak_lr=0)
    with pytest.raises(UsageError, match="holds no matrix of this Decoder"):
        CorrectedDecay(torch.optim.AdamW([model.norm.weight]), model)
    CorrectedDecay(optimizer, model)
    with pytest.raises(UsageError, match="CorrectedDecay already sets the decay"):
        CorrectedDecay(optimizer, model)
