"""Where a run's numbers go beside the log: trackio, wandb, tensorboard, whichever is installed and asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from specdiag.errors import MissingExtraError, UsageError
from specdiag.trajectories.records import RUN_METRICS, TRACKED, Trajectory

SINKS = ("trackio", "wandb", "tensorboard")


class Sink(NamedTuple):
    """Takes the numbers of a step by tag, and ends."""

    log: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


def open_sink(name: str, run: str, out: Path) -> Sink:
    """A sink by its name.

    Args:
        name: one of `SINKS`.
        run: what is watched; its last part is the name of the run there.
        out: folder for the files of tensorboard.

    Raises:
        UsageError: there is no such sink.
        MissingExtraError: it is not installed.
    """
    if name not in SINKS:
        raise UsageError(f"unknown --to '{name}'; choose from {', '.join(SINKS)}")
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


def tagged(found: Trajectory, step: int) -> dict[str, float]:
    """The medians of a step as `metric/role`, and what is said of the whole network as `run/metric`."""
    values = {
        f"{metric}/{role}": value
        for metric in TRACKED
        for family, role in found.roles()
        if (value := dict(found.series(metric, role, family=family)).get(step)) is not None
    }
    of_run = {m: dict(found.series(m)).get(step) for m in RUN_METRICS}
    return values | {f"run/{metric}": value for metric, value in of_run.items() if value is not None}


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"--to {package} needs {package}: pip install {package}") from error
