"""`specdiag lineage`: which models compute the same, which derive from each other, and who is a mix of whom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdiag.errors import UsageError

from . import options, output, targets
from .sharing import Given, takes_shared


@takes_shared("lineage")
@output.guarded
def lineage(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C...]",
            help="Hub ids (org/name, org/name@revision, URL), directories, weight files or runs; two or more.",
        ),
    ],
    *,
    given: Given,
    format: options.FormatOption = options.Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Save the lineage as JSON, or in the format of -f csv or md.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    all_rows: options.AllOption = False,
) -> None:
    """Tell whether models compute the same, derive from one another, or show no relation.

    Compare what blocks compute: names, folded norms, mixed heads and quantisation do not matter. With three models
    or more, find mixes of two others too, with their shares. The limits are provisional.

    Exit codes: 0 answered, 2 usage, 3 source, 4 no two of the models can be compared, 130 stopped by
    Ctrl-C, or 128 plus the number of another signal.
    """
    if len(sources) < 2:
        raise UsageError(f"name two models or more: only '{sources[0]}' was named")
    targets.check_file(out, format.value)
    options.check_rows(all_rows=all_rows, format=format.value)
    targets.check_apart(out, *sources)
    from specdiag.kinship.lineage import lineage as run

    from . import lineage_output as show
    from .progress import analysis_bar

    try:
        with analysis_bar() as bar:
            found = run(*sources, progress=bar, **given.analysis())
    except KeyboardInterrupt:
        output.talk("interrupted: no two models were compared", "yellow")
        output.leave()
    show.answer(found, format.value, out, all_rows=all_rows)
    if all(relation.verdict == "not comparable" for relation in found.relations):
        raise typer.Exit(4)
