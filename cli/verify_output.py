"""Output of `specdiag verify`: the verdict and its evidence, and data to print or save."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import output, tables

if TYPE_CHECKING:
    from specdiag.verification.records import Verification
    from specdiag.verification.wording import Row

_STYLES = {"verified": "bold green", "cannot be told": "bold yellow", "not verified": "bold red"}


def answer(found: Verification, format: str, out: Path | None, *, all_rows: bool) -> None:
    """Save what is asked for, and print: the verdict, or data for a pipeline."""
    from specdiag.verification import wording

    data = wording.to_markdown(found, all_rows=all_rows) if format == "md" else found.to_json()
    output.deliver(data, out, partial(_print, found, all_rows=all_rows) if format == "table" else None)


def _print(found: Verification, *, all_rows: bool) -> None:
    from specdiag.verification import wording

    console = output.console()
    console.print(wording.headline(found), style=_STYLES[found.verdict], soft_wrap=True)
    for line in wording.lines(wording.faults(found, all_rows=all_rows)):
        console.print(line, soft_wrap=True)
    if all_rows and (rows := wording.details(found)):
        console.print(tables.draw("", _columns(), rows, console.width))
    console.print()
    for sentence in wording.sentences(found):
        console.print(sentence, soft_wrap=True)


def _columns() -> list[tables.Column[Row]]:
    from specdiag.verification.wording import HEADS

    return [tables.Column(head, lambda row, i=i: row[i], right=False, drop=i) for i, head in enumerate(HEADS)]
