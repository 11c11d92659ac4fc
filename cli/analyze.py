"""`specdiag analyze`: spectra and exponents of every weight matrix."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdiag.errors import UsageError

from . import options, output
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from specdiag.report import SpectralReport


class Format(StrEnum):
    """Formats of a report."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"
    parquet = "parquet"


_SELECTING = ("include", "exclude", "role", "experts")


@takes_shared("analyze")
@output.guarded
def analyze(
    ctx: typer.Context,
    source: options.SourceArgument,
    *,
    given: Given,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the partial report of an interrupted analysis.",
            rich_help_panel=options.EXECUTION,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List matrices, bytes, roles and work; read no values.", rich_help_panel=options.EXECUTION
        ),
    ] = False,
    format: Annotated[
        Format,
        typer.Option(
            "--format", "-f", help="Format of what is printed; parquet needs -o.", rich_help_panel=options.OUTPUT
        ),
    ] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File for the report; with -f csv, md or parquet, for that table.",
            show_default="SOURCE.specdiag.json here",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    reference: options.ReferenceOption = None,
    spectra: options.SpectraOption = True,
    all_rows: options.AllOption = False,
    top: options.TopOption = None,
    summary: Annotated[
        bool,
        typer.Option(
            "--summary",
            help="Print one line and the mean and median of each metric, without tables.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> None:
    """Report the spectrum and tail exponent of every weight matrix, with error bars and a random baseline.

    Exit codes: 0 done, 2 usage, 3 source, 4 a matrix has no numbers, 130 stopped
    by Ctrl-C, or 128 plus the number of another signal.
    """
    from specdiag.analysis.options import split
    from specdiag.analysis.source import open_source
    from specdiag.report import is_report, load_report

    from . import analyze_output as show
    from . import partial, processes
    from .analyze_target import Target

    target = Target.of(
        format.value, out, spectra=spectra, all_rows=all_rows, top=top, summary=summary, reference=reference
    )
    if is_report(Path(source)):
        given.require_checkpoint(
            source, "shown", others=options.given(ctx, ("resume", "dry_run")), without=("fit_test",)
        )
        report = load_report(source)
        if given.values.get("fit_test"):
            from specdiag import fit_test  # loads SciPy's optimizers

            report = fit_test(report)
        show.answer(report, target)
        show.verdict(report)
        return
    ranks = None if dry_run else processes.join()
    opening, computing = split(given.arguments())
    if dry_run:
        from specdiag.system.paused_collection import paused_collection

        from .analyze_listing import listing

        if idle := options.given(ctx, ("resume", "summary", "top", "reference")):
            raise UsageError(f"--dry-run computes nothing: leave out {options.listed(idle)}")
        with paused_collection():
            checkpoint = open_source(source, **opening)
            show.provenance(checkpoint)
            listing(checkpoint, given.arguments(), target)
        return
    checkpoint = open_source(source, **opening)
    show.provenance(checkpoint)
    from specdiag import analyze as run
    from specdiag.analysis.analyze import AnalysisFailed, Interrupted

    from .progress import analysis_bar

    selected = any(given.values.get(name) for name in _SELECTING)
    target = target.opened(opening).saving(checkpoint.source, selected=selected, picked=opening.get("file"))
    held: dict[Path, SpectralReport] = {}
    if resume:
        if target.out is None or not target.is_report:
            raise UsageError("--resume goes on from a saved report: choose -f table, or -f json with -o")
        held = partial.find(target.out)
    report: SpectralReport | None = None
    is_first = ranks is None or ranks.rank == 0
    try:
        with analysis_bar() as bar:
            computing |= {"cache": given.cache, "partial_reports": list(held.values()), "ranks": ranks}
            report = run(checkpoint, **computing, progress=bar)
        if is_first:
            show.notes(
                note for note in report.provenance.notes if note not in (*checkpoint.notes, report.source.unread)
            )
            show.answer(report, target)
    except (Interrupted, AnalysisFailed) as stopped:
        show.stopped(stopped, target, ranks)
        if isinstance(stopped, AnalysisFailed):
            raise
        output.leave()
    except KeyboardInterrupt:
        if report is not None and is_first:
            show.save(report, target)
        raise
    if is_first and target.out is not None:
        partial.clear(held, target.out)
    if ranks is not None:
        ranks.wait_for_all()
    show.verdict(report)
