"""`specdiag watch`: a run while it trains, with no change to its script."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from specdiag.errors import ComputationError

from . import options, output, targets
from .answer_output import show_next
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from specdiag.trajectories.alerts import Alert
    from specdiag.trajectories.records import Trajectory


@takes_shared("watch", device="cpu")
@output.guarded
def watch(
    ctx: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Directory or quoted glob where checkpoints appear; or one file or folder, such as ckpt.pt.",
        ),
    ],
    *,
    given: Given,
    once: Annotated[
        bool,
        typer.Option(
            "--once",
            help="Analyse the checkpoints that exist, then end; exit with 1 on an alert.",
            rich_help_panel=options.EXECUTION,
        ),
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", min=0.1, help="Seconds between checks of the folder.", rich_help_panel=options.EXECUTION
        ),
    ] = 10.0,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="SINK",
            help="Log to trackio, wandb or tensorboard too; repeatable.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    out: options.OutFolderOption = None,
    metric: options.MetricOption = None,
    spectra: options.SpectraOption = False,
) -> None:
    """Analyse each new checkpoint of a live run in a separate process; alert on NaN, lost rank and norms off course.

    Runs until Ctrl-C (exit 130). With --once: exit 0 if clean, 1 on an alert, 2 usage, 3 no checkpoints, 4 if none
    could be analysed.
    """
    from specdiag.trajectories.records import RUN_METRICS, TRACKED, DroppedStep, StepResult
    from specdiag.trajectories.watching import watch as observe

    from . import trajectory_output as show
    from .live import live_table

    show.check_metric(metric, (*TRACKED, *RUN_METRICS))
    folder, file = targets.folder_or_file(out, "table")
    targets.check_apart(file, run)
    alerts: list[Alert] = []
    trajectory: Trajectory | None = None
    results: list[StepResult | DroppedStep] = []
    with show.sinks(to or [], run, folder) as send, live_table(metric) as shown:
        for seen in observe(run, out=folder, interval=interval, once=once, spectra=spectra, **given.analysis()):
            shown(seen)
            send(seen)
            alerts += seen.alerts
            results.append(seen.result)
            trajectory = seen.trajectory
            show.save(trajectory, file)
    dropped = [result for result in results if isinstance(result, DroppedStep)]
    if once and dropped and len(dropped) == len(results):
        first = dropped[0]
        raise ComputationError(f"none of {len(dropped)} checkpoints could be analysed; {first}: {first.reason}")
    if trajectory is not None:
        show.watched(trajectory, alerts)
        show_next({f"specdiag trajectory {shlex.quote(run)}": "the course of every number, step by step"})
    if alerts:
        raise typer.Exit(1)
