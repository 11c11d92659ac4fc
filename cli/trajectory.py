"""`specdiag trajectory`: exponents, norms and ranks over the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, output, processes

_ANALYSIS = (
    "base", "role_map", "include", "exclude", "experts", "device", "dtype", "tail", "tail_fraction", "square", "jobs",
    "memory",
)  # fmt: skip


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="Run directory (checkpoint-N, stepN), glob in quotes, or hub id with --revisions."
    ),
]
OutFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="DIR", help="Folder for reports and log.", show_default="specdiag_trajectory in the run"
    ),
]


@output.guarded
def trajectory(
    ctx: typer.Context,
    source: RunArgument,
    revisions: Annotated[
        str | None, typer.Option("--revisions", metavar="R1,R2,...", help="Of a hub repository: step1000,step2000.")
    ] = None,
    stream: options.StreamOption = False,
    out: OutFolderOption = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Of the table.", show_default="alpha_square, else alpha or norms")
    ] = None,
    base: options.BaseOption = None,
    role_map: options.RoleMapOption = None,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    role: options.RoleOption = None,
    experts: options.ExpertsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    tail: options.TailOption = options.Tail.hill,
    tail_fraction: options.TailFractionOption = 0.5,
    square: options.SquareOption = True,
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
    cache: options.CacheOption = True,
    spectra: Annotated[bool, typer.Option("--spectra/--no-spectra", help="Keep every eigenvalue.")] = False,
    format: Annotated[
        options.Format, typer.Option("--format", "-f", help="What is printed; csv: step,module,metric,value.")
    ] = options.Format.table,
    all_rows: Annotated[bool, typer.Option("--all", help="Every step in the table.")] = False,
) -> None:
    """Every checkpoint of a run, one at a time: alphas, norms and ranks per role, with the training loss beside them.

    What is finished is not computed again. Exit codes: 0 done, 2 usage, 3 no checkpoints, 4 none could be analysed,
    130 interrupted by Ctrl-C, else 128 and the signal's number (the next call goes on).
    """
    from specdiag.trajectories.records import RUN_METRICS, TRACKED
    from specdiag.trajectories.trajectory import TrajectoryInterrupted
    from specdiag.trajectories.trajectory import trajectory as run

    from . import trajectory_output as show
    from .progress import analysis_bar

    show.check_metric(metric, (*TRACKED, *RUN_METRICS))
    given: dict[str, Any] = options.given(ctx, _ANALYSIS)
    if role:
        given["roles"] = role
    given["cache"] = options.cache_folder(wanted=cache)
    given["ranks"] = processes.join()
    names = [name for name in (revisions or "").split(",") if name]
    try:
        with analysis_bar() as bar:
            found = run(
                source, revisions=names, stream=stream, out=out, spectra=spectra, on_step=show.step_line,
                progress=bar, **given,
            )  # fmt: skip
    except TrajectoryInterrupted as interrupted:
        done = len(interrupted.trajectory.steps)
        output.talk(f"interrupted after {done} steps, which are kept: run it again to go on", "yellow")
        if done:
            show.answer(interrupted.trajectory, format.value, metric, all_rows=all_rows)
        output.leave()
    show.answer(found, format.value, metric, all_rows=all_rows)
