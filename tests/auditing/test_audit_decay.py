"""Consistency of norms with a weight decay, a schedule, a number of steps and a start."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from audited_models import found, name, row
from models import PLACES
from saved_reports import made

import specdiag
from specdiag.dynamics.run_end import run_end
from specdiag.errors import UsageError
from specdiag.report import SpectralReport

LR, DECAY = 1e-3, 0.1
BALANCE = 0.0707106781  # sqrt(1e-3 / (2 * 0.1)), S1 of the reference


def decayed(rms: float, n: int = 12, spread: float = 1.1) -> SpectralReport:
    sizes = rms * spread ** np.linspace(-1, 1, n)
    return made(
        [
            row(name(i, PLACES[0]), "q", i, frobenius_norm=float(size) * 64, rows=64, cols=64)
            for i, size in enumerate(sizes)
        ]
    )


S = np.linspace(0, 1, 200_001)
COURSES = {
    "cosine": ((1 + np.cos(np.pi * S)) / 2, (1 - S) / 2 - np.sin(np.pi * S) / (2 * np.pi)),
    "linear": (1 - S, (1 - S) ** 2 / 2),
}
"""g(s) of schedules to zero, and its integral from s to the end."""


def after(shape: str, u: float) -> float:
    """The norm after a schedule to zero over that in balance, from balance: the integral, by quadrature."""
    g, rest = COURSES[shape]
    return math.sqrt(2 * u * np.trapezoid(g * g * np.exp(-2 * u * rest), S) + math.exp(-u))


@pytest.mark.parametrize("shape", COURSES)
@pytest.mark.parametrize("u", [1, 3, 10, 20, 80, 300, 1000])
def test_the_end_of_a_schedule_to_zero_is_that_of_the_integral(shape, u):
    end = run_end(lr=LR, weight_decay=DECAY, steps=round(u / (LR * DECAY)), lr_shape=shape)
    assert end.rms(BALANCE) / BALANCE == pytest.approx(after(shape, u), rel=2e-3)
    assert end.left == pytest.approx(math.exp(-u), abs=1e-3)


@pytest.mark.parametrize(
    "run",
    [
        {"lr_shape": "linear", "warmup": 5000, "final_lr": 1e-4, "steps": 50_000, "lr": 1e-3},
        {"lr_shape": "cosine", "steps": 20_000, "lr": 3e-3},
        {"lr_shape": "constant", "warmup": 900, "steps": 1500, "lr": 3e-3},
    ],
)
@pytest.mark.parametrize("start", [0.002, 0.3])
def test_the_end_of_a_run_is_that_of_the_simulation(run, start):
    whole = specdiag.simulate("adamw", weight_decay=DECAY, initial_rms=start, at=[run["steps"]], **run)
    assert run_end(weight_decay=DECAY, **run).rms(start) == pytest.approx(whole.course[-1].rms, rel=5e-3)


@pytest.mark.parametrize(
    ("u", "share", "answer"),
    [
        (3, 0.755, "consistent"),
        (10, 0.555, "consistent"),
        (20, 0.450, "consistent"),
        (80, 0.290, "consistent"),
        (300, 0.188, "consistent"),
        (3, 0.526 / 2, "inconsistent"),  # four times the stated decay: balance and share at u = 12
        (20, 0.290 / 2, "inconsistent"),  # likewise, at u = 80
        (10, 0.290 / 8**0.5, "inconsistent"),  # eight times
        (3, 1.0, "consistent"),  # in balance: a constant lr
        (20, 1.6, "consistent"),
        (20, 2.5, "inconsistent"),
        (20, 0.450 / 2.5, "inconsistent"),
        (20, 2.0, "cannot tell"),
    ],
)
def test_decay_is_consistent_or_not_and_never_a_number(u, share, answer):
    audit = specdiag.audit(decayed(share * BALANCE), weight_decay=DECAY, lr=LR, steps=u * 10_000)
    assert audit.decay is not None
    assert audit.decay.answer == answer
    assert audit.decay.expected_low / BALANCE == pytest.approx(after("cosine", u), abs=2e-3)
    assert audit.decay.expected_high == pytest.approx(BALANCE, rel=2e-3)
    assert found(audit) == ({("decay", None)} if answer == "inconsistent" else set())


def test_what_is_stated_of_the_run_narrows_the_range():
    """Each setting that is given narrows the range."""
    ranges = []
    for told in ({}, {"steps": 200_000}, {"lr_shape": "cosine"}, {"final_lr": 0.0}, {"initial_rms": 0.02}):
        settings = (ranges[-1][0] if ranges else {}) | told
        answer = specdiag.audit(decayed(0.0318), weight_decay=DECAY, lr=LR, **settings).decay
        ranges.append((settings, answer))
    lows = [a.expected_low / BALANCE for _, a in ranges]
    highs = [a.expected_high / BALANCE for _, a in ranges]
    assert lows == pytest.approx([after("cosine", 100), 0.450, 0.450, 0.450, 0.450], abs=2e-3)
    assert highs[:2] == pytest.approx([1, 1], abs=2e-3)
    assert highs[2:] == pytest.approx([0.450, 0.450, 0.450], abs=2e-3)
    assert [sum("not stated" in line for line in a.assumptions) for _, a in ranges] == [4, 3, 2, 1, 0]
    possible = [(a.possible_low / BALANCE, a.possible_high / BALANCE) for _, a in ranges]
    for wider, narrower in itertools.pairwise(possible):
        assert wider[0] <= narrower[0] <= narrower[1] <= wider[1]
    assert possible[2][0] == pytest.approx(0.428, abs=2e-3)  # a cosine to a tenth goes on decaying
    assert possible[-1] == pytest.approx((lows[-1], highs[-1]))


def test_a_start_that_is_not_forgotten(tmp_path):
    """With 1.1 times 1/(lr x decay) steps a third of the square is left: He's initialisation explains large weights."""
    start = (2 / 64) ** 0.5
    end = run_end(lr=LR, weight_decay=DECAY, steps=11_000, lr_shape="cosine").rms(start)
    large = decayed(1.3 * end)
    untold = specdiag.audit(large, weight_decay=DECAY, lr=LR, steps=11_000, thresholds={"decay": {"threshold": 1.5}})
    assert untold.decay.answer == "cannot tell"
    assert "another start than balance explains them" in untold.decay.reason
    assert untold.decay.possible_high == pytest.approx(end, rel=0.02)
    for rms, answer in ((start, "consistent"), (0.02, "inconsistent")):
        told = specdiag.audit(
            large, weight_decay=DECAY, lr=LR, steps=11_000, initial_rms=rms, thresholds={"decay": {"threshold": 1.5}}
        )
        assert told.decay.answer == answer


def test_decay_cannot_be_told_from_little():
    assert specdiag.audit(decayed(0.5, n=7), weight_decay=0.1, lr=1e-3).decay.answer == "cannot tell"
    short = specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=9_000)
    assert short.decay.answer == "cannot tell"
    assert "it is forgotten over 10000 steps" in short.decay.reason
    assert specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=9_000, initial_rms=0.02).decay.answer == "inconsistent"  # fmt: skip
    assert specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=20_000).decay.answer == "inconsistent"


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_decay": 0.1}, {"lr": 1e-3}, {"weight_decay": 0.0, "lr": 1.0}, {"steps": 9}, {"lr_shape": "cosine"},
        {"weight_decay": 2.0, "lr": 1.0}, {"weight_decay": 0.1, "lr": 1e-3, "steps": 0},
        {"weight_decay": 0.1, "lr": 1e-3, "warmup": 10}, {"weight_decay": 0.1, "lr": 1e-3, "steps": 10, "warmup": 10},
        {"weight_decay": 0.1, "lr": 1e-3, "final_lr": 1e-4},
        {"weight_decay": 0.1, "lr": 1e-3, "lr_shape": "cosine", "final_lr": 2e-3},
        {"weight_decay": 0.1, "lr": 1e-3, "lr_shape": "wsd"}, {"weight_decay": 0.1, "lr": 1e-3, "initial_rms": -1},
        {"weight_decay": 0.1, "lr": 1e-3, "steps": 10**12},
    ],
)  # fmt: skip
def test_settings_that_make_no_run_are_refused(wrong):
    with pytest.raises(UsageError):
        specdiag.audit(decayed(0.5), **wrong)
