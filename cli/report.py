"""`specdiag report`: a report as one HTML page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.errors import UsageError

from . import options, output

if TYPE_CHECKING:
    from specdiag.report import SpectralReport

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

    out = out or Path(_name(source))
    check_target(out)
    given = None
    if plan is not None:
        from specdiag.decay.plan import load_plan

        given = load_plan(plan)
    analysis = {name: value for name in _ANALYSIS if (value := ctx.params[name]) not in (None, "auto")}
    html_report(_report(source, analysis), plan=given, path=out)
    output.talk(f"written: {out}", "green")


def _report(source: str, analysis: dict[str, Any]) -> SpectralReport:
    """A saved report, or the analysis of a checkpoint."""
    from specdiag.report import is_report, load_report

    if is_report(Path(source)):
        if analysis:
            raise UsageError(f"{source} is a saved report: --{', --'.join(analysis)} needs the checkpoint itself")
        return load_report(source)
    from specdiag.analysis import analyze

    from .progress import analysis_bar

    output.talk(f"analysing {source} for this page alone; 'specdiag analyze' saves the report for the next", "dim")
    with analysis_bar() as bar:
        return analyze(source, **analysis, progress=bar)


def _name(source: str) -> str:
    """A file in this directory, named after the source."""
    name = Path(source).resolve().name if Path(source).exists() else source
    return re.sub(r"[^\w.-]+", "--", re.sub(r"(\.specdiag)?\.json$", "", name)).strip("-.") + ".specdiag.html"
