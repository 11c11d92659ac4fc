"""Output of `specdiag analyze`: tables, and data to print or save."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specdiag.errors import ComputationError, SpecdiagError, UsageError
from specdiag.system import interrupts
from specdiag.text.names import listed

from . import answer_output, failures, options, output, partial, tables, targets

if TYPE_CHECKING:
    from specdiag.analysis.analyze import AnalysisFailed, Interrupted
    from specdiag.analysis.processes import Ranks
    from specdiag.checkpoint.tensors import Checkpoint
    from specdiag.records import ModuleRecord, Source
    from specdiag.report import SpectralReport

_DEFAULTS = {"seed": 0}
FORMATS = ("table", "json", "csv", "md", "parquet")


@dataclass(frozen=True)
class Target:
    """Where the answer goes: `format` to stdout, or to `out`; for a table, `out` is the saved report."""

    format: str
    out: Path | None
    spectra: bool
    all_rows: bool
    summary: bool = False
    reopening: str = ""
    """The options that the source was opened with, as they would be typed again."""

    @classmethod
    def of(
        cls, format: str, out: Path | None, *, spectra: bool, all_rows: bool = False, summary: bool = False
    ) -> Target:
        """The target of the options, checked before any work."""
        if summary and (format != "table" or all_rows):
            raise UsageError(f"--summary is one line: leave out {'--all' if all_rows else f'-f {format}'}")
        if format not in FORMATS:
            raise UsageError(f"unknown format '{format}'; choose from {', '.join(FORMATS)}")
        if format == "parquet" and out is None:
            raise UsageError("parquet is binary; name a file with -o")
        report = format in ("table", "json")
        targets.check_file(out, format, "choose -f csv, md or parquet" if report else "choose -f json")
        return cls(format, out, spectra, all_rows, summary)

    def opened(self, opening: Mapping[str, object]) -> Target:
        """The same, for a source that was opened with these arguments."""
        given = {
            name: value
            for name, value in opening.items()
            if value not in (None, False, _DEFAULTS.get(name)) and name != "revision"
        }
        typed = (
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
            for name, value in given.items()
        )
        return replace(self, reopening="".join(f" {option}" for option in typed))

    def saving(self, source: Source, *, selected: bool, picked: object = None) -> Target:
        """For a table without -o: the report is saved under the source's own name in the working directory.

        A selection of matrices is saved beside, not over, the report of them all, an adapter applied to its base
        beside the report of its updates, and one file or part of several under its own name. Runs have checkpoints of
        equal names: where the report of another source has the name, that of the folder goes before it.
        """
        from specdiag.files import check_writable

        if self.format != "table" or self.out is not None:
            return self
        path = Path(source.location).resolve()
        stem = path.name if source.kind in ("dir", "file") else source.location
        stem = ".".join([stem, *(str(name) for name in (picked, source.part) if name is not None)])
        ending = (".merged" if source.base is not None else "") + (".selected" if selected else "") + ".specdiag.json"
        out = Path(_as_file_name(stem) + ending)
        if _is_of_another(out, source):
            out = Path(_as_file_name(f"{path.parent.name}/{stem}" if source.kind != "hub" else f"hub/{stem}") + ending)
        check_writable(out)
        return replace(self, out=out)

    def for_a_partial_report(self, rank: int = 0) -> Target:
        """Beside a file that is there already, never over it: what took an hour is not lost to Ctrl-C.

        With its eigenvalues always: without them it could not be gone on from.
        """
        if not self.is_report:
            return self
        assert self.out is not None
        beside = rank > 0 or self.out.exists()
        return replace(self, out=partial.place(self.out, rank) if beside else self.out, spectra=True)

    @property
    def is_report(self) -> bool:
        """True where a report is saved, which an interrupted analysis can go on from."""
        return self.format in ("table", "json") and self.out is not None


def _as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "--", text).strip("-.")


def _is_of_another(path: Path, source: Source) -> bool:
    """True where a report of another source is saved there."""
    from specdiag.errors import SourceError
    from specdiag.report import is_report, load_report

    if not is_report(path):
        return False
    try:
        held = load_report(path).source
    except SourceError:
        return False
    places = [Path(s.location).resolve() if s.kind in ("dir", "file") else s.location for s in (held, source)]
    return places[0] != places[1]


def provenance(checkpoint: Checkpoint) -> None:
    """Which files were chosen and which ignored, and what is to be said about the checkpoint."""
    source = checkpoint.source
    for name in (*source.files, *source.ignored):
        failures.require_unicode(name)
    parts = [str(source) if source.base is None else f"{source} on {source.base}"]
    if source.files:
        parts.append(f"reading {listed(source.files, 3)}")
    if source.ignored:
        parts.append(f"ignoring {listed(source.ignored)}")
    output.talk("; ".join(parts), "dim")
    for note in checkpoint.notes:
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
            for line in answer_output.next_commands(report, target.out, target.reopening):
                output.talk(f"next: {line}")
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
    said = f"{how} after {len(report)} matrices; the report is {state}"
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


def listing(checkpoint: Checkpoint, choices: options.Arguments, target: Target) -> None:
    """`--dry-run`: what would be analysed and what it would cost; no values are read."""
    from specdiag.analysis.cost import flops, seconds, stored_bytes
    from specdiag.analysis.selection import select
    from specdiag.analysis.settings import make_settings
    from specdiag.analysis.summary import count_reasons
    from specdiag.files import write_atomically
    from specdiag.resources import available_cpus
    from specdiag.views.export import export

    if target.format == "table" and target.out is not None:
        raise UsageError("--dry-run makes no report; with -o choose -f json, csv or md")
    settings = make_settings(**choices)
    selected, skipped = select(checkpoint, settings)
    rows: list[dict[str, Any]] = [
        {
            "name": m.key, "role": m.module.role, "family": m.module.family, "layer": m.module.layer,
            "component": m.module.component, "shape": "x".join(str(d) for d in m.shape), "dtype": m.storage_dtype,
            "bytes": stored_bytes(m),
            "gflop": flops(m, settings) / 1e9, "core_seconds": seconds(m, settings),
        }
        for m in selected
    ]  # fmt: skip
    if target.format != "table":
        data = export(rows, list(rows[0]), target.format)
        if target.out is None:
            output.write(data)
        else:
            write_atomically(target.out, data)
        return
    total = sum(row["gflop"] for row in rows)
    console = output.console()
    console.print(tables.rows_table(rows, f"{len(rows)} matrices would be analysed", console.width))
    if target.all_rows:
        left = [{"tensor": s.name, "shape": "x".join(map(str, s.shape)), "reason": s.reason} for s in skipped]
        console.print(tables.rows_table(left, f"{len(left)} left out", console.width))
    elif skipped:
        reasons = count_reasons(s.reason for s in skipped).items()
        console.print(
            f"Left out (--all lists them): {'; '.join(f'{n} {reason}' for reason, n in reasons)}", soft_wrap=True
        )
    megabytes = sum(row["bytes"] for row in rows) / 2**20
    wanted = sum(row["core_seconds"] for row in rows) / available_cpus()
    estimate = (
        f"about {wanted:.1f} s on {available_cpus()} processors, if they are like that of docs/scale.md"
        if settings.device == "cpu"
        else f"no estimate of the time on {settings.device}, which was not measured"
    )
    console.print(f"{megabytes:.0f} MiB to read, {total:.1f} GFLOP: {estimate}", soft_wrap=True)


def _print_table(report: SpectralReport, target: Target) -> None:
    from specdiag.views import sentences
    from specdiag.views.answer import answer as answer_of

    console = output.console()
    summary, records = report.summary, report.records
    if target.summary:
        console.print(f"{report.source}: {sentences.metrics(summary)}", soft_wrap=True)
        return
    answer_output.show(answer_of(report), console)
    console.print(tables.role_table(summary.roles, console.width))
    console.print()
    if target.all_rows and summary.contrasts:
        console.print(tables.contrast_table(summary.contrasts, console.width))
        console.print()
    if summary.laws:
        console.print(tables.law_table(summary.laws, console.width))
        console.print()
    bases = ("square_alpha", "alpha", "stable_rank")
    basis = next((b for b in bases if any(getattr(r, b) is not None for r in records)), "alpha")
    if target.all_rows or len(records) <= tables.ALL_UP_TO:
        console.print(tables.record_table(records, f"{len(records)} matrices", console.width))
    else:
        depth = tables.depth_table(records, basis, console.width)
        if depth is not None:
            console.print(depth)
            console.print()
        shown = tables.extremes(records, basis)
        title = f"The {len(shown)} most extreme of {len(records)} by {basis} (--all: every one)"
        console.print(tables.record_table(shown, title, console.width))
    console.print()
    if not report.complete:
        console.print("INCOMPLETE: the analysis was interrupted.", style="bold")
    said = [
        sentences.coverage(summary), *sentences.left_over(summary), *sentences.few(records),
        *sentences.missing_numbers(records), *sentences.laws(summary), *sentences.traps(records),
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
    cached = f"; {p.n_cached} of {len(records)} matrices from the cache" if p.n_cached else ""
    console.print(
        f"{p.seconds:.2f} s on {p.device} ({shared}{p.jobs} workers, {_arithmetic(records)}, "
        f"{report.settings.method}), peak {p.peak_bytes / 2**20:.0f} MiB{checked}{cached}",
        style="dim",
        soft_wrap=True,
    )


def _arithmetic(records: Sequence[ModuleRecord]) -> str:
    """Name the type in which most matrices were computed, and how many were not."""
    counted = Counter(r.compute_dtype for r in records).most_common()
    rest = "".join(f" but {n} in {dtype}" for dtype, n in counted[1:])
    return f"{counted[0][0]}{rest}" if counted else "nothing computed"
