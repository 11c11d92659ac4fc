"""`specdiag report`: a report as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import opening, options, output

if TYPE_CHECKING:
    pass

_ANALYSIS = ("device", "jobs", "memory")


@output.guarded
def report(
    ctx: typer.Context,
    source: options.SourceArgument,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Saved plan.", show_default="recommend's default")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="An .html file.", show_default="NAME.specdiag.html here")
    ] = None,
    device: options.DeviceOption = "auto",
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
) -> None:
    """One HTML page that opens anywhere: findings, tables, heatmap, decay plan, and every matrix's spectrum.

    Best from a saved report; a checkpoint is analysed first. Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    from specdiag.views.html.page import check_target, html_report

    out = out or Path(f"{opening.stem(source)}.specdiag.html")
    check_target(out)
    given = None
    if plan is not None:
        from specdiag.decay.plan import load_plan

        given = load_plan(plan)
    analysis = {name: value for name in _ANALYSIS if (value := ctx.params[name]) not in (None, "auto")}
    html_report(opening.report_of(source, analysis, "page"), plan=given, path=out)
    output.talk(f"written: {out}", "green")
