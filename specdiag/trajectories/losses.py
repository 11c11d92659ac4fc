"""Reads the training loss at a checkpoint from the trainer_state.json that a Hugging Face Trainer writes."""

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
    """Read the losses of a step from trainer_state.json in the checkpoint's folder, else in the run's.

    A missing or unreadable file gives no losses and no error, because the spectra do not depend on it.

    Args:
        checkpoint: folder of the checkpoint, or a file next to trainer_state.json.
        step: step of the checkpoint.
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
    """Return the last value up to `step`, None if it is not finite, and the step at which it was logged."""
    values = [
        (int(logged_at), value)
        for entry in history
        if (value := _number(entry.get(name))) is not None
        and (logged_at := _number(entry.get("step"))) is not None
        and 0 <= logged_at <= step
    ]
    if not values:
        return None, None
    logged_at, value = max(values, key=lambda pair: pair[0])
    return (value if math.isfinite(value) else None), logged_at


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return None
