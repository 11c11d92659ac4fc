"""Files of a norm watch in a run: a log with a line for each value, and a list of the modules and their optimizers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from specdiag.dynamics.updates import Optimizer
from specdiag.errors import SourceError
from specdiag.files import json_decoder, write_atomically
from specdiag.records import Record, Source
from specdiag.storage.kinds import WATCHED, read_record
from specdiag.trajectories.entries import tracked
from specdiag.trajectories.metric_log import LOG_NAME, NORMS_NAME, LogEntry, latest, read_log
from specdiag.trajectories.records import StepResult, TrackedModule, Trajectory

MODULES_NAME = "modules.json"

Series = list[tuple[int, float]]


class NormedModule(TrackedModule, frozen=True, kw_only=True):
    """A matrix whose norms were watched."""

    n_values: int
    decay: Literal["decoupled", "coupled", "by weight"]
    """Only decoupled decay can be separated from the update."""
    optimizer: Optimizer | None = None
    """Name of the optimizer in `simulate`; None where no model covers it."""
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    lr_scale: float = 1.0
    """The simulated lr over the logged one."""


class Watched(Record, frozen=True, kw_only=True):
    """Content of `modules.json`, the file next to the log."""

    schema: int = WATCHED.schema
    every: int
    modules: tuple[NormedModule, ...]


_decode = json_decoder(Watched)


class NormLog(Record, frozen=True, kw_only=True):
    """Modules of a watched run, and all logged values.

    Values at step s are those of the weights after s updates, and of the update that follows.
    """

    run: str
    every: int
    modules: tuple[NormedModule, ...]
    rows: tuple[LogEntry, ...]

    def series(self, metric: str) -> dict[str, Series]:
        """Return the logged values of a metric.

        Args:
            metric: such as `frobenius_norm`.

        Returns:
            (step, value) pairs by the key of the module; '' is the whole network. A module without the metric is left
            out.
        """
        by_module: dict[str, Series] = {}
        for row in self.rows:
            if row.metric == metric and row.value is not None:
                by_module.setdefault(row.module, []).append((row.step, row.value))
        return by_module

    def trajectory(self) -> Trajectory:
        """Return the log in the form of a run's checkpoints, so that their figures can draw it."""
        steps = sorted({row.step for row in self.rows if row.metric == "frobenius_norm"})
        source = Source(kind="dir", location=self.run)
        return Trajectory(
            run=self.run,
            out=str(Path(self.run) / NORMS_NAME),
            steps=tuple(
                StepResult(step=s, source=source, report="", n_matrices=len(self.modules), statuses={}) for s in steps
            ),
            modules=tuple(map(tracked, self.modules)),
            rows=self.rows,
        )


def has_norm_log(path: str | os.PathLike[str]) -> bool:
    """Tell whether a norm watch wrote to a folder.

    Args:
        path: a run, or the folder `specdiag_norms` in it.
    """
    return _folder(Path(path)) is not None


def load_norm_log(path: str | os.PathLike[str]) -> NormLog:
    """Read the log of a norm watch.

    Args:
        path: a run, or the folder `specdiag_norms` in it.

    Raises:
        SourceError: there is no log, or it is damaged or empty.
    """
    folder = _folder(Path(path))
    if folder is None:
        raise SourceError(f"{path} holds no norms: log them with specdiag.optim.NormWatch")
    watched = read_record(folder / MODULES_NAME, _decode, WATCHED)
    run = folder.parent if folder.name == NORMS_NAME else folder
    rows = tuple(latest(read_log(folder / LOG_NAME)))
    if not rows:
        raise SourceError(f"{folder / LOG_NAME} is empty: no step was logged")
    return NormLog(run=str(run), every=watched.every, modules=watched.modules, rows=rows)


def write_modules(folder: Path, every: int, modules: Iterable[NormedModule]) -> None:
    """Make the folder of a log, and write its list of modules.

    Args:
        folder: made where it is missing.
        every: steps from one logged step to the next.
        modules: that are watched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODULES_NAME, msgspec.json.encode(Watched(every=every, modules=tuple(modules))))


def _folder(path: Path) -> Path | None:
    return next((f for f in (path / NORMS_NAME, path) if (f / MODULES_NAME).is_file()), None)
