"""`specdiag compare`: changes between two checkpoints or reports, and an exit code for pipelines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag.errors import UsageError

from . import options, output, processes, targets
from .sharing import Given, takes_shared

MOST = 20
"""Matrices that changed most which the table shows."""
_OF_RANKING = ("sources", "format", "out", "cache")


@takes_shared("compare")
@output.guarded
def compare(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="BEFORE AFTER",
            help="Two of: hub id, directory, weight file or saved report. Runs of specdiag train, two or "
            "more, are ranked too, by improvement over the first.",
        ),
    ],
    *,
    given: Given,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-above",
            metavar="METRIC=VALUE",
            help="Exit with 1 if a matrix moved further; repeatable.",
            rich_help_panel=options.THRESHOLDS,
        ),
    ] = None,
    weights: Annotated[
        bool | None,
        typer.Option(
            "--weights/--no-weights",
            help="Compare the weights themselves.",
            show_default="where both are checkpoints",
            rich_help_panel=options.CONTENT,
        ),
    ] = None,
    subspace: Annotated[
        int,
        typer.Option(
            "--subspace",
            min=0,
            help="Leading singular directions to compare; 0 skips them, a quarter faster.",
            rich_help_panel=options.CONTENT,
        ),
    ] = 10,
    reference: options.ReferenceOption = None,
    format: options.FormatOption = options.Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Save the comparison as JSON, or in the format of -f csv or md.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    all_rows: options.AllOption = False,
    top: options.TopOption = None,
) -> None:
    """Show what changed from BEFORE to AFTER: per role, per matrix, and what has no counterpart.

    Runs of `specdiag train` are first ranked by held-out loss. Formats other than table contain only the ranking.

    Exit codes: 0 done, 1 a limit of --fail-above is exceeded, 2 usage, 3 source, 4 a matrix has no numbers,
    130 stopped by Ctrl-C, or 128 plus the number of another signal.
    """
    from specdiag.report import is_report

    targets.check_file(out, format.value)
    options.check_rows(all_rows=all_rows, top=top, format=format.value, reference=reference)
    if _are_runs(sources):
        unfinished = _unfinished(sources)
        if unfinished and len(sources) == 2:
            output.talk(f"no ranking: {unfinished[0]} has not come to its end", "yellow")
        else:
            alone = len(sources) > 2 or format is not options.Format.table
            if alone and (
                idle := [name for name in ctx.params if name not in _OF_RANKING and options.is_given(ctx, name)]
            ):
                raise UsageError(
                    f"runs are ranked by their losses here, and {options.listed(idle)} would do nothing: name two runs "
                    "with -f table, or checkpoints of them"
                )
            if alone and out is not None and format is options.Format.table:
                raise UsageError("a ranking is saved as -f json, csv or md: say which")
            converged = _rank(sources, format, out)
            if len(sources) == 2 and not converged and format is options.Format.table:
                output.talk("the weights are not compared: those of a run that diverged are not its end", "yellow")
                return
            if alone:
                return
    if len(sources) != 2:
        raise UsageError(_wrong_count(sources))
    before, after = sources
    targets.check_apart(out, before, after)
    from specdiag.comparison.compare import compare as run
    from specdiag.comparison.compare import failures
    from specdiag.comparison.limits import exceeding, parse_limits
    from specdiag.reference.ranges import the_reference

    from . import compare_output as show
    from .progress import analysis_bar

    limits = parse_limits(fail_above or [])
    ranges = the_reference(reference)
    if options.is_given(ctx, "subspace") and (weights is False or any(is_report(Path(source)) for source in sources)):
        raise UsageError("--subspace is of the weights, which are not compared here: leave it out")
    ranks = processes.join()
    analysis: dict[str, Any] = given.analysis() | {"ranks": ranks}
    try:
        with analysis_bar() as bar:
            found = run(before, after, weights=weights, subspace=subspace, progress=bar, **analysis)
    except KeyboardInterrupt:
        output.talk("interrupted: two checkpoints are compared whole or not at all", "yellow")
        output.leave()
    speaks = ranks is None or ranks.rank == 0
    show.answer(found, format.value, out if speaks else None, None if all_rows else top or MOST, ranges)
    if speaks and format is options.Format.table:
        show.show_next(before, after, reopens=not given.names)
    if ranks is not None:
        ranks.wait_for_all()
    if exceeded := exceeding(found, limits):
        show.excess(exceeded)
        raise typer.Exit(1)
    if bad := failures(found):
        show.failed(bad)
        raise typer.Exit(4)


def _wrong_count(sources: list[str]) -> str:
    if len(sources) == 1:
        return f"name two to compare, BEFORE and AFTER: only '{sources[0]}' was named"
    return f"name two to compare, not {len(sources)}; only finished runs of specdiag train may be more, to be ranked"


def _are_runs(sources: list[str]) -> bool:
    """True where all are runs of specdiag train."""
    return len(sources) > 1 and all((Path(source) / "specdiag_train.toml").is_file() for source in sources)


def _unfinished(sources: list[str]) -> list[str]:
    from specdiag.train.runs.leaderboard import is_finished

    return [source for source in sources if not is_finished(Path(source))]


def _rank(sources: list[str], format: options.Format, out: Path | None) -> bool:
    """Print or save the ranking; False where a run has no finite loss."""
    from specdiag.files import write_atomically
    from specdiag.train.runs.leaderboard import rank

    from .train_ranking_output import ranking, ranking_data

    rows, notes = rank([Path(source) for source in sources])
    if format is options.Format.table:
        ranking(rows, notes)
        return all(math.isfinite(row.loss) for row in rows)
    data = ranking_data(rows, format.value)
    if out is None:
        output.write(data)
    else:
        write_atomically(out, data)
    return all(math.isfinite(row.loss) for row in rows)
