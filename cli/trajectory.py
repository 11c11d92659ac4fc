"""`specdiag trajectory`: exponents, norms and ranks over the checkpoints of a run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options, output, processes, targets
from .sharing import Given, takes_shared

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Run directory (checkpoint-N, stepN), glob in quotes, ckpt.pt, or a hub id (--revisions).",
    ),
]


@takes_shared("trajectory")
@output.guarded
def trajectory(
    ctx: typer.Context,
    source: RunArgument,
    *,
    given: Given,
    revisions: Annotated[
        str | None,
        typer.Option(
            "--revisions",
            metavar="R1,R2,...",
            help="Revisions of a hub repository: step1000,step2000.",
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    out: options.OutFolderOption = None,
    metric: options.MetricOption = None,
    spectra: options.SpectraOption = False,
    format: Annotated[
        options.Format,
        typer.Option(
            "--format",
            "-f",
            help="Format of what is printed; csv: step,module,metric,value.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = options.Format.table,
    all_rows: options.AllOption = False,
) -> None:
    """Follow every checkpoint of a run, one at a time: alphas, norms and ranks per role, beside the training loss.

    Finished checkpoints are not computed again. Exit codes: 0 done, 2 usage, 3 no checkpoints, 4 none could be
    analysed, 130 stopped by Ctrl-C, or 128 plus the number of another signal (the next call goes on).
    """
    from specdiag.trajectories.records import RUN_METRICS, TRACKED
    from specdiag.trajectories.trajectory import TrajectoryInterrupted
    from specdiag.trajectories.trajectory import trajectory as run

    from . import trajectory_output as show
    from .progress import analysis_bar

    show.check_metric(metric, (*TRACKED, *RUN_METRICS))
    options.check_rows(all_rows=all_rows, format=format.value)
    folder, file = targets.folder_or_file(out, format.value)
    targets.check_apart(file, source)
    analysis: dict[str, Any] = given.analysis() | {"ranks": processes.join()}
    names = [name for name in (revisions or "").split(",") if name]
    try:
        with analysis_bar() as bar:
            found = run(
                source, revisions=names, out=folder, spectra=spectra, on_step=show.step_line, progress=bar, **analysis
            )
    except TrajectoryInterrupted as interrupted:
        done = len(interrupted.trajectory.steps)
        output.talk(f"interrupted after {done} steps, which are kept: run it again to go on", "yellow")
        if done:
            show.answer(interrupted.trajectory, format.value, metric, all_rows=all_rows, file=file)
        output.leave()
    show.answer(found, format.value, metric, all_rows=all_rows, file=file)
