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
from specdiag.trajectories.loss_alerts import DEVIATIONS, FIRST, WINDOW

OUTCOME = "specdiag_outcome.json"
LOSS = "loss"
"""Name of the figure that every task has."""
SCHEMA = 1
_AGAIN = "delete it, and continue the run to write it anew"
_MOST = 1e100
"""Largest figure that is accepted: above any float32 loss, and small enough that means do not overflow."""


class Outcome(Record, frozen=True, kw_only=True):
    """Outcome of a run. Seconds and tokens are totals over all its processes and continuations; losses are in nats."""

    schema: int = SCHEMA
    step: int
    steps_total: int
    seconds: float
    """Seconds of training steps, saving and measuring."""
    decay_seconds: float
    """Part of these seconds that the decay rule took."""
    tokens: int
    train_loss: float | None
    """Last logged loss."""
    spike_share: float | None
    """Fraction of logged losses that are spikes; None if too few were logged."""
    held_out_before: dict[str, float | None]
    """`loss` and the metrics of the task before the first step; None for a value that is not finite."""
    held_out: dict[str, float | None] | None
    """The same at the end; None for a run that was interrupted. All values are None if the run diverged."""
    diverged_at: int | None = None
    """Steps after which the loss was not finite; None if the run did not end for that."""

    @property
    def before(self) -> dict[str, float]:
        """`held_out_before` with NaN instead of None."""
        return _with_nan(self.held_out_before)

    @property
    def after(self) -> dict[str, float] | None:
        """`held_out` with NaN instead of None."""
        return None if self.held_out is None else _with_nan(self.held_out)


_decode = json_decoder(Outcome)


def save_outcome(run: Path, outcome: Outcome) -> None:
    """Write the outcome of a run atomically into its folder."""
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
    """Delete the outcome of a run if it says that the run diverged, because the run is tried again."""
    outcome = load_outcome(run)
    if outcome is not None and outcome.diverged_at is not None:
        (run / OUTCOME).unlink()


def _check(path: Path, outcome: Outcome) -> None:
    """Refuse an outcome that no run writes."""
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
    """Fraction of losses at least seven standard deviations from the mean of the last 1000 losses before.

    The spike score of OLMo 2 (arXiv 2501.00656, section 3.1), for losses that were logged at any interval. The first 10
    losses are never spikes. A loss that is not finite is a spike, and is left out of means.

    Args:
        losses: losses in the order of logging.

    Returns:
        None for fewer than 20 losses.
    """
    if len(losses) < 20:
        return None
    values = np.asarray(losses, dtype=np.float64)
    spikes = 0
    for i in range(FIRST, len(values)):
        window = values[max(0, i - WINDOW) : i]
        window = window[np.isfinite(window)]
        finite = bool(np.isfinite(values[i]))
        spikes += not finite or (len(window) > 0 and _stands_out(values[i], window))
    return spikes / len(values)


def _stands_out(value: float, window: NDArray[np.float64]) -> bool:
    return bool(abs(value - window.mean()) >= DEVIATIONS * window.std())
