"""`specdiag watch`: a run while it trains, with no change to its script."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, output

_ANALYSIS = (
    "base", "role_map", "include", "exclude", "experts", "device", "dtype", "square", "jobs", "memory",
)  # fmt: skip


@output.guarded
def watch(
    ctx: typer.Context,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Directory, or glob in quotes, that checkpoints appear in.")
    ],
    once: Annotated[bool, typer.Option("--once", help="Take what is there and end; exit with 1 on an alert.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks.")] = 10.0,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="SINK", help="Also to trackio, wandb or tensorboard; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for reports and log.",
            show_default="specdiag_trajectory in the run",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Of the table.", show_default="alpha_square, else alpha or norms")
    ] = None,
    base: options.BaseOption = None,
    role_map: options.RoleMapOption = None,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    role: options.RoleOption = None,
    experts: options.ExpertsOption = None,
    device: options.DeviceOption = "cpu",
    dtype: options.DTypeOption = options.DType.auto,
    square: options.SquareOption = True,
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
    cache: options.CacheOption = True,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Keep every eigenvalue.")] = False,
) -> None:
    """Each new checkpoint of a live run, analysed in a process of its own; alerts on NaN, lost rank, a norm off course.

    Ends with Ctrl-C (130), or with --once: 0, 1 after an alert. 2 usage, 3 no checkpoints.
    """
    from specdiag.trajectories.records import RUN_METRICS, TRACKED
    from specdiag.trajectories.watching import watch as observe

    from . import trajectory_output as show
    from .live import live_table

    show.check_metric(metric, (*TRACKED, *RUN_METRICS))
    given: dict[str, Any] = options.given(ctx, _ANALYSIS)
    if role:
        given["roles"] = role
    given.setdefault("device", device)
    given["cache"] = options.cache_folder(wanted=cache)
    n_alerts = 0
    with show.sinks(to or [], run, out) as send, live_table(metric) as shown:
        for seen in observe(run, out=out, interval=interval, once=once, spectra=spectra, **given):
            shown(seen)
            send(seen)
            n_alerts += len(seen.alerts)
    if n_alerts:
        raise typer.Exit(1)
