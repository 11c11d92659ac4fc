"""`specdiag explain`: meaning of a number of a report, of any other column and key that is printed, or of a check."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from typer.core import TyperGroup

from specdiag.errors import UsageError

from . import answer_output, door, output

if TYPE_CHECKING:
    from specdiag.views.reading import Entry
    from specdiag.views.terms import Term


@output.guarded
def explain(
    ctx: typer.Context,
    column: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Column of a table, key of a file, or check of the audit; without it, the names are listed.",
        ),
    ] = None,
) -> None:
    """Say what a number or a check means, what is typical, and what to do about it.

    Exit codes: 0 done, 2 usage.
    """
    if column is None:
        _list_names(output.console())
        return
    from specdiag.auditing.thresholds import default_checks
    from specdiag.views import reading
    from specdiag.views.terms import terms

    entry, found, check = reading.find(column), terms(column), default_checks().get(column.strip().lower())
    if entry is None and not found and check is None:
        raise UsageError(_unknown(column))
    console = output.console()
    if check is not None:
        _show_check(check.id, ctx, console)
    if found:
        _show_terms(column.strip(), found, console)
    if entry is None and (of := next((term.of for term in found if term.of), None)) is not None:
        entry = reading.find(of)
    if entry is not None:
        _show_entry(entry, console)


def _list_names(console: Console) -> None:
    """Print the names that are asked for most."""
    from specdiag.auditing.thresholds import default_checks
    from specdiag.views import reading

    kinds = {"Numbers of a report": reading.meanings(), "Checks of the audit": default_checks()}
    answer_output.show_facts([(kind, ", ".join(names)) for kind, names in kinds.items()], console)
    console.print("Every other column of a table and key of a csv or JSON file has an entry too.", soft_wrap=True)
    answer_output.show_next({"specdiag explain NAME": "what it means, what is typical, what to do"})


def _show_check(name: str, ctx: typer.Context, console: Console) -> None:
    """Print a check of the audit, in the options of that command."""
    from specdiag.auditing.explain import explain
    from specdiag.auditing.thresholds import default_checks

    group = ctx.find_root().command
    command = group.get_command(ctx, "audit") if isinstance(group, TyperGroup) else None
    parameters = [] if command is None else command.params
    for line in explain(name, default_checks()):
        console.print(door.in_options(line, parameters, ()), soft_wrap=True)
    console.print()


def _show_terms(name: str, found: tuple[Term, ...], console: Console) -> None:
    console.print(name, style="bold")
    console.print()
    subjects: list[tuple[str, str]] = []
    for term in found:
        subjects.append((f"In {term.command}" if term.command != "any" else "Everywhere", term.meaning))
        typical = ("Typical", term.typical)
        subjects += [typical] if term.typical and typical not in subjects else []
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
    from specdiag.auditing.thresholds import default_checks
    from specdiag.text.names import listed
    from specdiag.text.printable import printable
    from specdiag.views import reading
    from specdiag.views.terms import names

    known = {name.lower(): name for name in (*default_checks(), *reading.meanings(), *names())}
    near = [known[name] for name in get_close_matches(column.strip().lower(), known, n=3)]
    hint = f"did you mean {listed(near)}?" if near else f"choose from {listed(reading.meanings(), 99)}"
    return f"no column or check is called '{printable(column)[:60]}': {hint}"
