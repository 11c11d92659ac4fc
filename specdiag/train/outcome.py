"""What came of a run, kept in its folder for comparison with others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from specdiag.errors import SourceError
from specdiag.records import Record
from specdiag.report import write_atomically

OUTCOME = "specdiag_outcome.json"
_WINDOW, _DEVIATIONS = 1000, 7.0


class Outcome(Record, frozen=True, kw_only=True):
    """Of all processes that worked on the run; losses in nats."""

    schema: int = 1
    step: int
    steps_total: int
    seconds: float
    """Of the training steps, saving and measuring."""
    decay_seconds: float
    """Of these, what the decay rule took."""
    tokens: int
    train_loss: float | None
    """The last one logged."""
    spike_share: float | None
    held_out_before: dict[str, float]
    """`loss` and the task's figures of merit before the first step."""
    held_out: dict[str, float] | None
    """The same at the end; None for a run that was interrupted."""


def save_outcome(run: Path, outcome: Outcome) -> None:
    """Write it, whole or not at all."""
    write_atomically(run / OUTCOME, msgspec.json.format(msgspec.json.encode(outcome)))


def load_outcome(run: Path) -> Outcome | None:
    """What came of a run; None where nothing was kept.

    Raises:
        SourceError: the file is damaged.
    """
    path = run / OUTCOME
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outcome)
    except (OSError, msgspec.DecodeError) as error:
        raise SourceError(
            f"{path} cannot be read ({error}): delete it, or continue the run to write it anew"
        ) from error


def spike_share(losses: Sequence[float]) -> float | None:
    """Share of losses at least seven standard deviations from the mean of the last 1000 before them.

    The spike score of OLMo 2 (arXiv 2501.00656, section 3.1), for whatever interval the losses were logged at. None
    for fewer than 20 losses; the first 10 are no spikes.
    """
    if len(losses) < 20:
        return None
    values = np.asarray(losses, dtype=np.float64)
    spikes = 0
    for i in range(10, len(values)):
        window = values[max(0, i - _WINDOW) : i]
        spikes += bool(abs(values[i] - window.mean()) >= _DEVIATIONS * window.std())
    return spikes / len(values)
