"""Reads the decays that a training run logged: the values that the optimizer read, whenever they changed."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError
from specdiag.files import is_regular, read_whole
from specdiag.records import Family, Role, stored_role
from specdiag.trajectories.metric_log import LIMIT, LOG_NAME, latest, read_log
from specdiag.trajectories.steps import find_steps

_DECAY = "weight_decay"

Series = list[tuple[int, float]]


@dataclass(frozen=True)
class DecayLog:
    """The decays of a run over its steps.

    Attributes:
        run: name of the run's folder.
        series: for each (family, role) one series per Parameter: (step, decay) at every change.
        last: last logged step.
        checkpoint: name of the checkpoint whose names and shapes gave the roles.
    """

    run: str
    series: dict[tuple[Family, Role], list[Series]]
    last: int
    checkpoint: str


def has_decay_log(source: str | os.PathLike[str]) -> bool:
    """Tell whether `source` is the folder of a run that logged its decays.

    Raises:
        SourceError: the log cannot be read.
    """
    path = Path(source) / LOG_NAME
    if not is_regular(path):
        return False
    try:
        return f'"{_DECAY}"'.encode() in read_whole(path, LIMIT)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def load_decay_log(run: str | os.PathLike[str]) -> DecayLog:
    """Read the decays of a run of `specdiag train`. The roles come from the names in its newest checkpoint.

    Args:
        run: folder of the run, with its log and checkpoints.

    Raises:
        SourceError: there is no checkpoint, or none of its matrices was logged.
    """
    folder = Path(run)
    newest = find_steps(folder)[-1]
    roles: dict[str, tuple[Family, Role]] = {
        m.name: (m.module.family, stored_role(m.module.role)) for m in open_checkpoint(newest.location).matrices
    }
    entries = latest(read_log(folder / LOG_NAME))
    by_name: dict[str, Series] = defaultdict(list)
    for entry in entries:
        if entry.metric == _DECAY and entry.value is not None and entry.module in roles:
            by_name[entry.module].append((entry.step, entry.value))
    if not by_name:
        raise SourceError(f"{folder / LOG_NAME} has no decay of a matrix in {newest}: was it another model's?")
    series: dict[tuple[Family, Role], list[Series]] = defaultdict(list)
    for name, changes in by_name.items():
        series[roles[name]].append(changes)
    return DecayLog(folder.name, dict(series), max(entry.step for entry in entries), Path(newest.location).name)
