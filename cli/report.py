"""`specdiag report`: a report as one HTML page."""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from specdiag.errors import UsageError

from . import door, opening, options, output
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from specdiag.decay.plan import DecayPlan
    from specdiag.report import SpectralReport


@takes_shared("report")
@output.guarded
def report(
    ctx: typer.Context,
    source: options.SourceArgument,
    *,
    given: Given,
    plan: options.PlanOption = None,
    reference: options.ReferenceOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File of the page, .html.",
            show_default="NAME.specdiag.html here",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> None:
    """Write one HTML page that opens anywhere: findings, tables, heatmap, decay plan, and every matrix's spectrum.

    A saved report is fastest; a checkpoint is analysed first. A table of audit -f parquet gives one page of all models.
    Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    from specdiag.auditing.fleets.table import is_table
    from specdiag.files import write_atomically
    from specdiag.views.html.page import check_target, render_page

    out = out or Path(f"{opening.stem(source)}.specdiag.html")
    check_target(out)
    if is_table(Path(source)):
        if refused := options.listed([*given.names, *options.given(ctx, ("plan", "reference"))]):
            raise UsageError(f"{source} is the table of many models, drawn as it is: leave out {refused}")
        _fleet(Path(source), out)
    else:
        from specdiag.auditing.audit import audit
        from specdiag.decay.plan import load_plan
        from specdiag.reference.ranges import the_reference

        saved = None if plan is None else load_plan(plan)
        ranges = the_reference(reference)
        analysed = opening.report_of(source, given, "page")
        audited = audit(analysed, reference=ranges)
        page = render_page(analysed, saved or _default_plan(analysed), audited, ranges, _words_of_commands(ctx))
        write_atomically(out, page.encode())
    output.talk(f"written: {out}", "green")
    if show:
        _open(out)


def _words_of_commands(ctx: typer.Context) -> dict[Literal["audit", "recommend"], Callable[[str], str]]:
    """Options as they are typed, in the sentences of commands that the page speaks of."""
    program = ctx.find_root().command
    names: tuple[Literal["audit", "recommend"], ...] = ("audit", "recommend")
    commands = program.commands if isinstance(program, TyperGroup) else {}
    return {name: partial(door.in_options, parameters=commands[name].params) for name in names if name in commands}


def _open(page: Path) -> None:
    """Show a page in the browser; where there is none, say how to."""
    from .machine import browser

    if (found := browser()) is None or not webbrowser.open(page.resolve().as_uri()):
        output.talk(f"no browser can be started here: open {page.resolve()} in one", "yellow")
    else:
        output.talk(f"opened in {found}", "dim")


def _fleet(table: Path, out: Path) -> None:
    from specdiag.auditing.fleets.models import load_models
    from specdiag.files import write_atomically
    from specdiag.views.html.fleet import fleet_page

    models = load_models(table)
    write_atomically(out, fleet_page(models, table.name).encode())


def _default_plan(report: SpectralReport) -> DecayPlan | None:
    """The plan of `specdiag recommend` without options; None, with its reason, where none can be made."""
    from specdiag.decay.recommend import recommend

    try:
        return recommend(report)
    except UsageError as error:
        output.talk(f"no plan: {error}", "yellow")
        return None
