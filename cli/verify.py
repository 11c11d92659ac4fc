"""`specdiag verify`: whether a merge, a conversion or a quantisation is what it claims to be, as an exit code."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from specdiag.errors import UsageError

from . import options, output, targets


class Format(StrEnum):
    """Formats of a verification."""

    table = "table"
    json = "json"
    md = "md"


@output.guarded
def verify(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE [ADAPTER] MODEL",
            help="Base, adapter and merged model; or an original and what it was converted or quantised to. Hub "
            "ids, directories, weight files.",
        ),
    ],
    *,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Read hub repositories by ranges and write nothing to disk.",
            rich_help_panel=options.SOURCE,
        ),
    ] = False,
    format: Annotated[
        Format, typer.Option("--format", "-f", help="Format of what is printed.", rich_help_panel=options.OUTPUT)
    ] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Save the verification as JSON, or with -f md as Markdown.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    all_rows: options.AllOption = False,
) -> None:
    """Verify that MODEL is BASE with ADAPTER merged, or the same model converted or quantised.

    Compare every tensor, bit for bit where rounding can be replayed, and name each fault.

    Exit codes: 0 verified, 1 not verified or undecided, 2 usage, 3 source, 130 stopped by Ctrl-C, or
    128 plus the number of another signal.
    """
    if len(sources) not in (2, 3):
        raise UsageError(
            f"name two models, ORIGINAL CONVERTED, or three, BASE ADAPTER MERGED: {len(sources)} were named"
        )
    targets.check_file(out, format.value)
    options.check_rows(all_rows=all_rows, format="table" if format is Format.md else format.value)
    targets.check_apart(out, *sources)
    from specdiag.verification.verify import verify as run

    from . import verify_output as show
    from .progress import analysis_bar

    try:
        with analysis_bar() as bar:
            found = run(sources[0], *sources[1:], stream=stream, progress=bar)
    except KeyboardInterrupt:
        output.talk("interrupted: nothing was verified", "yellow")
        output.leave()
    show.answer(found, format.value, out, all_rows=all_rows)
    if found.verdict != "verified":
        raise typer.Exit(1)
