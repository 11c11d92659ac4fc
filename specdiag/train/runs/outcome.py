"""Outcome of a run, kept in its folder for comparison with others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from specdiag.errors import SourceError
from specdiag.files import json_decoder, read_whole, write_atomically
from specdiag.records import Record

OUTCOME = "specdiag_outcome.json"
LOSS = "loss"
"""The figure that every task has."""
SCHEMA = 1
_AGAIN = "delete it, and continue the run to write it anew"
_MOST = 1e100
"""Beyond any loss of float32, and below what a mean of two overflows at."""
_WINDOW, _DEVIATIONS = 1000, 7.0


class Outcome(Record, frozen=True, kw_only=True):
    """Totals over all processes that worked on the run; losses in nats."""

    schema: int = SCHEMA
    step: int
    steps_total: int
    seconds: float
    """Seconds of training steps, saving and measuring."""
    decay_seconds: float
    """Seconds of these that the decay rule took."""
    tokens: int
    train_loss: float | None
    """The last one logged."""
    spike_share: float | None
    held_out_before: dict[str, float | None]
    """`loss` and the task's figures of merit before the first step; None for what is not finite, which JSON lacks."""
    held_out: dict[str, float | None] | None
    """The same at the end; None for a run that was interrupted, and None for each where the run diverged."""
    diverged_at: int | None = None
    """Steps after which the loss was not finite, where that ended the run."""

    @property
    def before(self) -> dict[str, float]:
        """`held_out_before`, NaN for what is not finite."""
        return _with_nan(self.held_out_before)

    @property
    def after(self) -> dict[str, float] | None:
        """`held_out`, NaN for what is not finite."""
        return None if self.held_out is None else _with_nan(self.held_out)


_decode = json_decoder(Outcome)


def save_outcome(run: Path, outcome: Outcome) -> None:
    """Write it, whole or not at all."""
    write_atomically(run / OUTCOME, msgspec.json.format(msgspec.json.encode(outcome)))


def load_outcome(run: Path) -> Outcome | None:
    """Load the outcome of a run; None if there is none.

    Raises:
        SourceError: the file is damaged.
    """
    path = run / OUTCOME
    if not path.exists():
        return None
    try:
        outcome = _decode(read_whole(path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}; {_AGAIN}") from error
    except msgspec.DecodeError as error:
        raise SourceError(f"{path} cannot be read ({error!s:.400}): {_AGAIN}") from error
    if outcome.schema != SCHEMA:
        raise SourceError(f"{path} is of schema {outcome.schema}, and this specdiag reads {SCHEMA}: {_AGAIN}")
    _check(path, outcome)
    return outcome


def forget_divergence(run: Path) -> None:
    """Delete the outcome of a run that diverged and is tried again."""
    held = load_outcome(run)
    if held is not None and held.diverged_at is not None:
        (run / OUTCOME).unlink()


def _check(path: Path, outcome: Outcome) -> None:
    """Refuse what no run leaves."""
    for side in (outcome.held_out_before, outcome.held_out):
        if side is not None and LOSS not in side:
            raise SourceError(f"{path} has figures without a loss: {_AGAIN}")
        large = next((name for name, value in (side or {}).items() if value is not None and abs(value) > _MOST), None)
        if large is not None:
            raise SourceError(f"{path} has a {large:.80} of {(side or {})[large]:g}, which no run leaves: {_AGAIN}")
    for name in ("step", "steps_total", "seconds", "decay_seconds", "tokens", "diverged_at"):
        value = getattr(outcome, name)
        if value is not None and value < 0:
            raise SourceError(f"{path} has {name} {value}, and less than nothing is none: {_AGAIN}")


def _with_nan(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in figures.items()}


def spike_share(losses: Sequence[float]) -> float | None:
    """Share of losses at least seven standard deviations from the mean of the last 1000 before them.

    The spike score of OLMo 2 (arXiv 2501.00656, section 3.1), for whatever interval the losses were logged at. None
    for fewer than 20 losses; the first 10 are no spikes. One that is not finite is a spike, and no part of a mean.
    """
    if len(losses) < 20:
        return None
    values = np.asarray(losses, dtype=np.float64)
    spikes = 0
    for i in range(10, len(values)):
        window = values[max(0, i - _WINDOW) : i]
        window = window[np.isfinite(window)]
        finite = bool(np.isfinite(values[i]))
        spikes += not finite or (len(window) > 0 and _stands_out(values[i], window))
    return spikes / len(values)


def _stands_out(value: float, window: NDArray[np.float64]) -> bool:
    return bool(abs(value - window.mean()) >= _DEVIATIONS * window.std())
