"""Loads a trajectory from the file of `Trajectory.save`, or from the folder that `trajectory` writes."""

from __future__ import annotations

import os
from pathlib import Path

from specdiag.errors import SourceError
from specdiag.files import json_decoder
from specdiag.report import load_report
from specdiag.storage.kinds import TRAJECTORY, read_record
from specdiag.text import checks
from specdiag.trajectories.entries import followed, step_entries, step_result, tracked
from specdiag.trajectories.ledger import LEDGER_NAME, read_ledger, run_of
from specdiag.trajectories.losses import Losses
from specdiag.trajectories.metric_log import LOG_NAME, RUN, latest, read_log
from specdiag.trajectories.records import OUT_NAME, TrackedModule, Trajectory

_decode = json_decoder(Trajectory)


def load_trajectory(path: str | os.PathLike[str]) -> Trajectory:
    """Read a saved trajectory; nothing is analysed.

    Args:
        path: a file of `Trajectory.save`, the output folder of a trajectory, or the run that it lies in.

    Raises:
        SourceError: there is no trajectory, or it is damaged.
    """
    path = checks.path("path", path)
    folder = next((f for f in (path, path / OUT_NAME) if (f / LEDGER_NAME).is_file()), None)
    if folder is not None:
        return _from_folder(folder)
    if path.is_dir() or not os.path.lexists(path):
        raise SourceError(f"{path} holds no trajectory: {TRAJECTORY.remedy}")
    return read_record(path, _decode, TRAJECTORY)


def _from_folder(folder: Path) -> Trajectory:
    ledger = read_ledger(folder / LEDGER_NAME)
    log = latest(read_log(folder / LOG_NAME)) if (folder / LOG_NAME).exists() else []
    run_metrics = {(e.step, e.metric): e.value for e in log if e.module == RUN}
    steps, rows = [], []
    modules: dict[str, TrackedModule] = {}
    for step, finished in sorted((int(name), finished) for name, finished in ledger.steps.items()):
        report = load_report(folder / finished.report)
        losses = Losses(loss=run_metrics.get((step, "loss")), eval_loss=run_metrics.get((step, "eval_loss")))
        result = step_result(step, report, finished.report, losses, resumed=True)
        steps.append(result)
        rows += step_entries(result, report)
        modules |= {r.key: tracked(r) for r in followed(report) if r.key not in modules}
    return Trajectory(
        run=run_of(folder, ledger),
        out=str(folder),
        steps=tuple(steps),
        modules=tuple(modules.values()),
        rows=tuple(rows),
    )
