"""The training loss beside a checkpoint, from the trainer_state.json that a Hugging Face Trainer leaves there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from specdiag.files import read_whole

_STATE = "trainer_state.json"


class Losses(NamedTuple):
    """The last losses that were logged at or before a step."""

    loss: float | None = None
    loss_step: int | None = None
    eval_loss: float | None = None


def read_losses(checkpoint: Path, step: int) -> Losses:
    """Losses of a step: of the state in the checkpoint's folder, else of the one in the run's.

    A state that is missing or unreadable gives None: the spectra do not depend on it.

    Args:
        checkpoint: a folder, or a file beside the state.
        step: of the checkpoint.
    """
    for folder in (checkpoint, checkpoint.parent):
        history = _history(folder / _STATE)
        if history:
            loss, where = _last(history, "loss", step)
            return Losses(loss, where, _last(history, "eval_loss", step)[0])
    return Losses()


def _history(path: Path) -> list[Mapping[str, object]]:
    try:
        state = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError):
        return []
    history = cast("Mapping[str, object]", state).get("log_history") if isinstance(state, dict) else None
    entries = cast("list[object]", history) if isinstance(history, list) else []
    return [cast("Mapping[str, object]", entry) for entry in entries if isinstance(entry, dict)]


def _last(history: list[Mapping[str, object]], name: str, step: int) -> tuple[float | None, int | None]:
    """The last value, NaN too, and its step."""
    values = [
        (int(at), value)
        for entry in history
        if (value := _number(entry.get(name))) is not None
        and (at := _number(entry.get("step"))) is not None
        and 0 <= at <= step
    ]
    if not values:
        return None, None
    at, value = max(values, key=lambda pair: pair[0])
    return (value if math.isfinite(value) else None), at


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return None
