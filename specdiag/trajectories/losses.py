"""Reads the training loss at a checkpoint: trainer_state.json of a Hugging Face Trainer, or Lightning's metrics.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from specdiag.files import read_whole

_STATE = "trainer_state.json"
_TABLE = "metrics.csv"
_COLUMNS = {
    "loss": ("train_loss", "train/loss", "train_loss_step", "train/loss_step", "loss"),
    "eval_loss": ("val_loss", "val/loss", "valid_loss", "eval_loss"),
}
"""Names that Lightning's users give to the losses in its table, the first that is there."""


class Losses(NamedTuple):
    """The last losses that were logged at or before a step."""

    loss: float | None = None
    loss_step: int | None = None
    eval_loss: float | None = None


def read_losses(checkpoint: Path, step: int) -> Losses:
    """Read the losses of a step from the files that trainers leave beside a checkpoint, or above it.

    A missing or unreadable file gives no losses and no error, because the spectra do not depend on it.

    Args:
        checkpoint: folder or file of the checkpoint.
        step: step of the checkpoint.
    """
    for history in _histories(checkpoint):
        if history:
            loss, where = _last(history, "loss", step)
            return Losses(loss, where, _last(history, "eval_loss", step)[0])
    return Losses()


def _histories(checkpoint: Path) -> Iterator[list[Mapping[str, object]]]:
    """Yield what each file that may hold losses says, the nearest first."""
    for folder in (checkpoint, checkpoint.parent):
        yield _of_a_trainer(folder / _STATE)
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        yield _of_lightning(folder / _TABLE)
    versions = list(checkpoint.parent.glob(f"lightning_logs/version_*/{_TABLE}"))
    if len(versions) == 1:  # of several, nothing tells which run saved the checkpoint
        yield _of_lightning(versions[0])


def _of_a_trainer(path: Path) -> list[Mapping[str, object]]:
    try:
        state = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError):
        return []
    history = cast("Mapping[str, object]", state).get("log_history") if isinstance(state, dict) else None
    entries = cast("list[object]", history) if isinstance(history, list) else []
    return [cast("Mapping[str, object]", entry) for entry in entries if isinstance(entry, dict)]


def _of_lightning(path: Path) -> list[Mapping[str, object]]:
    try:
        rows = csv.DictReader(io.StringIO(read_whole(path).decode()))
        columns = rows.fieldnames or ()
        names = {ours: next((name for name in theirs if name in columns), None) for ours, theirs in _COLUMNS.items()}
        if "step" not in columns:
            return []
        return [
            {"step": _parsed(row["step"])}
            | {ours: _parsed(row[name]) for ours, name in names.items() if name is not None and row[name]}
            for row in rows
        ]
    except (OSError, ValueError, csv.Error):
        return []


def _parsed(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


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
