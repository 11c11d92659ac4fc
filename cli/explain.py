"""`specdiag explain`: what a number of a report means."""

from __future__ import annotations

from typing import Annotated

import typer

from . import answer_output, output


@output.guarded
def explain(
    column: Annotated[str, typer.Argument(metavar="COLUMN", help="Column of a report, or head of a table.")],
) -> None:
    """Say what a number means, what is typical, and what to do when it is high or low.

    Exit codes: 0 done, 2 usage.
    """
    from specdiag.views import reading

    entry = reading.explain(column)
    console = output.console()
    console.print(entry.column, style="bold")
    console.print()
    answer_output.show_facts(entry.lines(), console)
    if entry.also:
        console.print(f"The same holds for {', '.join(entry.also)}.", soft_wrap=True)
    console.print("Formulas and limits: docs/numbers.md. Numbers of other models: docs/reading.md, Reference ranges.")
