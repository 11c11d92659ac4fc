"""Output of `specdiag analyze`: tables, and data to print or save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specdiag.errors import ComputationError, SpecdiagError
from specdiag.system import interrupts
from specdiag.text.counts import counted
from specdiag.text.names import listed

from . import answer_output, failures, function_tables, output, tables

if TYPE_CHECKING:
    from specdiag.analysis.analyze import AnalysisFailed, Interrupted
    from specdiag.analysis.processes import Ranks
    from specdiag.checkpoint.tensors import Checkpoint
    from specdiag.records import ModuleRecord
    from specdiag.report import SpectralReport

    from .analyze_target import Target


def provenance(checkpoint: Checkpoint) -> None:
    """The files that were chosen and ignored where there was a choice, and notes on the checkpoint."""
    source = checkpoint.source
    for name in (*source.files, *source.ignored):
        failures.require_unicode(name)
    parts = [str(source) if source.base is None else f"{source} on {source.base}"]
    has_choice = source.base is not None or source.ignored or len(source.files) > 1
    if source.files:
        parts.append(f"reading {listed(source.files, 3)}")
    if source.ignored:
        parts.append(f"ignoring {listed(source.ignored)}")
    if has_choice:
        output.talk("; ".join(parts), "dim")
    notes(checkpoint.notes)


def notes(sentences: Iterable[str]) -> None:
    """Remarks on a checkpoint."""
    for note in sentences:
        output.talk(f"note: {note}", "yellow")


def answer(report: SpectralReport, target: Target) -> None:
    """Save and print a finished or partial report: saved first, for the reader of the output may go away."""
    from specdiag.report import COLUMNS
    from specdiag.text import markdown
    from specdiag.views.export import export

    if not report.complete:
        output.talk(f"{report.source}: the analysis was interrupted, this report is incomplete", "yellow")
    save(report, target)
    if target.format == "table":
        _print_table(report, target)
    if target.format in ("table", "json") and target.out is not None:
        output.talk(f"report: {target.out}", "green")
        if report.complete and target.format == "table":
            answer_output.show_next(answer_output.next_commands(report, target.out, target.reopening))
        return
    if target.format == "table":
        return
    data = report.to_json() if target.format == "json" else export(report.to_records(), COLUMNS, target.format)
    if target.format == "md" and report.source.unread:
        data += f"\n{markdown.text(report.source.unread)}\n".encode()
    output.deliver(data, target.out)


def save(report: SpectralReport, target: Target) -> None:
    """Save the report where one is asked for; a signal waits so long.

    Raises:
        ComputationError: the disk is full. If the report alone fits, it is saved without its eigenvalues.
    """
    if target.format not in ("table", "json") or target.out is None:
        return
    with interrupts.delay_signals():
        try:
            report.save(target.out, spectra=target.spectra)
        except ComputationError as error:
            if not target.spectra:
                raise
            _save_without_spectra(report, target.out, error)


def _save_without_spectra(report: SpectralReport, out: Path, error: ComputationError) -> None:
    try:
        report.save(out, spectra=False)
    except SpecdiagError:
        raise error from None
    raise ComputationError(f"{error}; the report is in {out}, without its eigenvalues") from error


def stopped(stopped: Interrupted | AnalysisFailed, target: Target, ranks: Ranks | None) -> None:
    """Keep what was measured before a signal or a failure."""
    report = stopped.report
    go_on = ": --resume goes on from it" if target.is_report else ""
    rank = 0 if ranks is None else ranks.rank
    how = "interrupted" if isinstance(stopped, KeyboardInterrupt) else "stopped by an error"
    state = "complete" if report.complete else f"marked incomplete{go_on}"
    said = f"{how} after {counted(len(report), 'matrix', 'matrices')}; the report is {state}"
    if ranks is None:
        output.talk(said, "yellow")
    else:
        why = stopped.__cause__ if isinstance(stopped.__cause__, SpecdiagError) else "another process may have died"
        output.trouble(f"{said} ({why})")
    kept = target if report.complete and rank == 0 else target.for_a_partial_report(rank)
    if rank == 0:
        answer(report, kept)
    elif kept.is_report and kept.out is not None:
        report.save(kept.out)


def verdict(report: SpectralReport) -> None:
    """Exit with 4 if a selected matrix has no numbers, naming it."""
    bad = [r for r in report if r.status in ("nonfinite", "failed")]
    if bad:
        names = listed(f"{r.key} ({r.status}: {r.n_nonfinite} values)" if r.n_nonfinite else r.key for r in bad)
        output.fault(f"{len(bad)} of {len(report)} matrices have no spectrum: {names}")
        raise typer.Exit(4)


def _print_table(report: SpectralReport, target: Target) -> None:
    from specdiag.views import form_sentences, sentences
    from specdiag.views.answer import answer as answer_of

    console = output.console()
    summary, records = report.summary, report.records
    if target.summary:
        console.print(f"{report.source}: {sentences.metrics(summary)}", soft_wrap=True)
        return
    if records:
        answer_output.show(answer_of(report, target.reference), console)
        console.print(tables.role_table(summary.roles, console.width))
        console.print()
    if report.function:
        if not records:
            function_tables.show_title(report, console)
        function_tables.show(summary, report.function, console, all_rows=target.all_rows)
    if target.all_rows and summary.contrasts:
        console.print(tables.contrast_table(summary.contrasts, console.width))
        console.print()
    if summary.laws:
        console.print(tables.law_table(summary.laws, console.width))
        console.print()
    bases = ("square_alpha", "alpha", "stable_rank")
    basis = next((b for b in bases if any(getattr(r, b) is not None for r in records)), "alpha")
    most = len(records) if target.all_rows else tables.most_rows(len(records), target.top)
    if records and most == len(records):
        console.print(tables.record_table(records, counted(len(records), "matrix", "matrices"), console.width, basis))
    elif records:
        depth = tables.depth_table(records, basis, console.width)
        if depth is not None:
            console.print(depth)
            console.print()
        shown = tables.extremes(records, basis, most)
        title = f"The {len(shown)} most extreme of {len(records)} by {basis} (--all: every one)"
        console.print(tables.record_table(shown, title, console.width, basis))
    console.print()
    if not report.complete:
        console.print("INCOMPLETE: the analysis was interrupted.", style="bold")
    said = [
        *([sentences.coverage(summary)] if records else []), *sentences.left_over(summary), *sentences.few(records),
        *sentences.missing_numbers(records), *sentences.laws(summary), *sentences.traps(records),
        *form_sentences.gauge(records), *form_sentences.few_products(report.function),
    ]  # fmt: skip
    if target.all_rows:
        said += [*sentences.contrast(summary), *sentences.tails(records), *sentences.balance(summary)]
    for sentence in said:
        console.print(sentence, soft_wrap=True)
    if report.source.unread:
        console.print(report.source.unread, soft_wrap=True)
    p = report.provenance
    checked = "" if p.device_difference is None else f"; differs from the CPU by {p.device_difference:.0e} at most"
    shared = f"{p.processes} processes of " if p.processes > 1 else ""
    cached = f"; {p.n_cached} of {len(records) + len(report.function)} rows from the cache" if p.n_cached else ""
    console.print(
        f"{p.seconds:.2f} s on {p.device} ({shared}{p.jobs} workers, {_arithmetic((*records, *report.function))}, "
        f"{report.settings.method}), peak {p.peak_bytes / 2**20:.0f} MiB{checked}{cached}",
        style="dim",
        soft_wrap=True,
    )


def _arithmetic(records: Sequence[ModuleRecord]) -> str:
    """Name the type in which most matrices were computed, and how many were not."""
    counted = Counter(r.compute_dtype for r in records).most_common()
    rest = "".join(f" but {n} in {dtype}" for dtype, n in counted[1:])
    return f"{counted[0][0]}{rest}" if counted else "nothing computed"
