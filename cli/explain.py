"""`specdiag explain`: what a number of a report means, or any other column and key that a command prints."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from specdiag.errors import UsageError

from . import answer_output, output

if TYPE_CHECKING:
    from specdiag.views.reading import Entry
    from specdiag.views.terms import Term


@output.guarded
def explain(
    column: Annotated[str, typer.Argument(metavar="COLUMN", help="Column of a table, or key of a csv or JSON file.")],
) -> None:
    """Say what a number means, what is typical, and what to do when it is high or low.

    Exit codes: 0 done, 2 usage.
    """
    from specdiag.views import reading
    from specdiag.views.terms import terms

    entry, found = reading.find(column), terms(column)
    if entry is None and not found:
        raise UsageError(_unknown(column))
    console = output.console()
    if found:
        _show_terms(column.strip(), found, console)
    if entry is None and (of := next((term.of for term in found if term.of), None)) is not None:
        entry = reading.find(of)
    if entry is not None:
        _show_entry(entry, console)


def _show_terms(name: str, found: tuple[Term, ...], console: Console) -> None:
    console.print(name, style="bold")
    console.print()
    subjects = [(f"In {term.command}" if term.command != "any" else "Everywhere", term.meaning) for term in found]
    answer_output.show_facts(subjects, console)


def _show_entry(entry: Entry, console: Console) -> None:
    console.print(entry.column, style="bold")
    console.print()
    answer_output.show_facts(entry.lines(), console)
    if entry.also:
        console.print(f"The same holds for {', '.join(entry.also)}.", soft_wrap=True)
    said = "Formulas and limits: docs/numbers.md. Numbers of other models: docs/reading.md, Reference ranges."
    console.print(said, soft_wrap=True)


def _unknown(column: str) -> str:
    from specdiag.text.names import listed
    from specdiag.text.printable import printable
    from specdiag.views import reading
    from specdiag.views.terms import names

    known = {name.lower(): name for name in (*reading.meanings(), *names())}
    near = [known[name] for name in get_close_matches(column.strip().lower(), known, n=3)]
    hint = f"did you mean {listed(near)}?" if near else f"choose from {listed(reading.meanings(), 99)}"
    return f"no command prints a column '{printable(column)[:60]}': {hint}"
