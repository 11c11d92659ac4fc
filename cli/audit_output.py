"""Output of `specdiag audit`: tables, and data to print or save."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.text.printable import printable

from . import output, tables

if TYPE_CHECKING:
    from specdiag.auditing.records import AuditReport, Finding

_STYLES = {"pass": "bold green", "warn": "bold yellow", "fail": "bold red"}


def answer(audit: AuditReport, format: str, out: Path | None, *, all_rows: bool) -> None:
    """Save what is asked for, and print: the table, or data for a pipeline."""
    from specdiag.auditing import wording

    data = wording.to_markdown(audit, all_rows=all_rows) if format == "md" else audit.to_json()
    output.deliver(data, out, partial(_print, audit, all_rows=all_rows) if format == "table" else None)


def _print(audit: AuditReport, *, all_rows: bool) -> None:
    from specdiag.auditing import wording

    console = output.console()
    console.print(wording.headline(audit), style=_STYLES[audit.verdict], soft_wrap=True)
    grouped = wording.groups(audit)
    if grouped:
        rows = [row for group in grouped for row in _rows(group, all_rows=all_rows)]
        console.print(tables.draw("", _columns(), rows, console.width))
        console.print()
        for group in grouped:
            console.print(wording.explanation(group[0]), soft_wrap=True)
    console.print()
    sentences = [*(wording.decay(audit.decay) if audit.decay is not None else ()), *wording.coverage(audit)]
    for sentence in sentences:
        console.print(sentence, soft_wrap=True)


def _rows(group: tuple[Finding, ...], *, all_rows: bool) -> list[tuple[str, ...]]:
    """The findings of a check, a few of them where there are many."""
    from specdiag.auditing import wording

    shown = group if all_rows or len(group) <= wording.FEW + 1 else group[: wording.FEW]
    rows = [
        (printable(f.module or "the checkpoint"), f.severity, f.check, wording.value(f), wording.limit(f))
        for f in shown
    ]
    if len(shown) < len(group):
        rows.append((f"and {len(group) - len(shown)} more (--all)", group[0].severity, group[0].check, "", ""))
    return rows


def _columns() -> list[tables.Column[tuple[str, ...]]]:
    heads = ("module", "severity", "check", "value", "threshold")
    return [
        tables.Column(head, lambda row, i=i: row[i], right=head == "threshold", drop=1 if head == "threshold" else 0)
        for i, head in enumerate(heads)
    ]
