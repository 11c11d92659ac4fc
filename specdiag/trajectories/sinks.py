"""Trackers that get the numbers of a run in addition to the log: trackio, wandb or tensorboard."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from specdiag.errors import MissingExtraError, UsageError
from specdiag.trajectories.metric_log import RUN
from specdiag.trajectories.records import Trajectory

SINKS = ("trackio", "wandb", "tensorboard")


class Sink(NamedTuple):
    """A tracker that is open.

    Attributes:
        log: takes a step and its numbers by tag.
        close: ends the tracker's run.
    """

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


def open_sink(name: str, run: str, out: Path) -> Sink:
    """Open a tracker.

    Args:
        name: one of `SINKS`.
        run: path of the watched run; its last part names the run in the tracker.
        out: folder for the files of tensorboard.

    Raises:
        UsageError: there is no such tracker.
        MissingExtraError: its package is not installed.
    """
    if name not in SINKS:
        raise UsageError(f"unknown to='{name}'; choose from {', '.join(SINKS)}")
    if name == "tensorboard":
        writer = _import("torch.utils.tensorboard", name).SummaryWriter(str(out / "tensorboard"))

        def write(step: int, values: dict[str, float]) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)
            writer.flush()

        return Sink(write, writer.close)
    tracker = _import(name, name)
    tracker.init(project="specdiag", name=Path(run).resolve().name)
    return Sink(lambda step, values: tracker.log(values, step=step), tracker.finish)


def tagged(trajectory: Trajectory, step: int) -> dict[str, float]:
    """Name the numbers of a step for a tracker.

    Args:
        trajectory: the run so far.
        step: one of its steps.

    Returns:
        Medians over the matrices of a role as `metric/role`, of other rows of the function than its products as
        `metric/function.role`, numbers of the whole network as `run/metric`.
    """
    stored = {role for _, role in trajectory.roles()}
    roles = {
        m.key: f"function.{m.role}" if m.form == "function" and m.role in stored else m.role for m in trajectory.modules
    }
    values: dict[str, list[float]] = {}
    for row in trajectory.rows:
        if row.step == step and row.value is not None:
            tag = f"run/{row.metric}" if row.module == RUN else f"{row.metric}/{roles[row.module]}"
            values.setdefault(tag, []).append(row.value)
    return {tag: median(group) for tag, group in values.items()}


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"to='{package}' needs {package}: pip install {package}") from error
