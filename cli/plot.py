"""`specdiag plot`: a figure of a report, a plan or a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.errors import UsageError

from . import opening, options, output
from .plot_kinds import ARGUMENTS, CHOICE, DRAWING, Basis, Kind, Style, check
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specdiag.decay.plan import DecayPlan
    from specdiag.dynamics.norm_log import NormLog
    from specdiag.report import SpectralReport
    from specdiag.trajectories.records import Trajectory


@takes_shared("plot")
@output.guarded
def plot(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help="Kind of figure.", show_default=False)],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Saved report, hub id, directory or weight file. decay also takes a plan or a run of train. "
            "trajectory and norms take the output of 'specdiag trajectory', norms also a run with NormWatch. esd, "
            "balance and paper take several sources.",
            show_default=False,
        ),
    ],
    *,
    given: Given,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File of the figure: .png, .svg or .pdf.",
            show_default="SOURCE.KIND.png here",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer", metavar="N", help="Take only this layer; repeatable.", rich_help_panel=options.SELECTION
        ),
    ] = None,
    basis: Annotated[
        Basis | None,
        typer.Option(
            "--basis",
            help="alpha, or square, which can be compared across shapes.",
            show_default="square for alpha and balance, else alpha",
            rich_help_panel=options.CONTENT,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="COLUMN",
            help="heatmap, heads and trajectory only: metric drawn.",
            show_default="square_alpha; of heads rho",
            rich_help_panel=options.CONTENT,
        ),
    ] = None,
    plan: options.PlanOption = None,
    all_rows: Annotated[
        bool,
        typer.Option(
            "--all", help="esd only: draw every matrix, as ridges by layer.", rich_help_panel=options.SELECTION
        ),
    ] = False,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr", help="norms only: overlay AdamW's prediction at this constant lr.", rich_help_panel=options.RUN
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            help="norms only: weight decay of that prediction (NormWatch logs lr and decay).",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    dpi: Annotated[
        int,
        typer.Option("--dpi", min=30, max=1200, help="Dots per inch of a png.", rich_help_panel=options.OUTPUT),
    ] = 150,
    style: Annotated[
        Style, typer.Option("--style", help="Colours for light or for dark pages.", rich_help_panel=options.OUTPUT)
    ] = Style.light,
    transparent: Annotated[
        bool, typer.Option("--transparent", help="Leave out the background.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> None:
    """Draw into a file: esd, alpha, balance, heatmap, heads, decay, scree, the paper's figures, trajectory, norms.

    A saved report is fastest; a checkpoint is analysed first. Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    chosen: dict[str, Any] = {name: given.values[name] for name in DRAWING if name in given.values}
    own: dict[str, Any] = {
        "layer": layer, "basis": basis, "metric": metric, "plan": plan, "lr": lr, "weight_decay": weight_decay,
        "all_rows": all_rows or None,
    }  # fmt: skip
    chosen |= {name: value for name, value in own.items() if value is not None}
    check(kind, sources, chosen)
    out = out or Path(f"{opening.stem(sources[0])}.{kind}.png")
    from specdiag import plot as figures

    figures.check_target(out)
    with figures.style(style.value):
        figure = _without_report(kind, sources[0], chosen, given)
        if figure is None:
            if kind is Kind.heads:
                given = replace(given, values={**given.values, "function": True})
            reports = [opening.report_of(source, given, "figure", drawing=DRAWING) for source in sources]
            figure = _draw(kind, reports, chosen)
    figures.save(figure, out, dpi=dpi, transparent=transparent)
    output.talk(f"written: {out}", "green")


def _without_report(kind: Kind, source: str, chosen: dict[str, Any], given: Given) -> Figure | None:
    """The figure of a trajectory, a log or a plan; None where it is one of reports."""
    from specdiag import plot as figures

    roles = chosen.get("role", [])
    if kind is Kind.trajectory:
        from specdiag.trajectories.load import load_trajectory

        figure = figures.trajectory(load_trajectory(source), metric=chosen.get("metric"), roles=roles)
    elif kind is Kind.norms:
        figure = figures.norms(_norms(source, chosen.get("lr"), chosen.get("weight_decay")), roles=roles)
    elif kind is Kind.decay and not chosen and _logged_decays(source):
        from specdiag.trajectories.decay_log import load_decay_log

        figure = figures.decay_run(load_decay_log(source))
    elif kind is Kind.decay and "plan" not in chosen and _is_plan(source):
        from specdiag.decay.plan import load_plan

        figure = figures.decay(load_plan(source))
    else:
        return None
    if idle := options.listed(name for name in given.names if name not in DRAWING):
        raise UsageError(f"{source} is drawn as it is: leave out {idle}")
    return figure


def _norms(source: str, lr: float | None, weight_decay: float | None) -> Trajectory | NormLog:
    """The log of a norm watch, else the checkpoints of a trajectory, with the settings that were given."""
    from specdiag.dynamics.norm_log import has_norm_log, load_norm_log

    if has_norm_log(source):
        if lr is not None or weight_decay is not None:
            raise UsageError(f"{source} has its own lr and decay in its log: leave out --lr and --weight-decay")
        return load_norm_log(source)
    from specdiag.trajectories.load import load_trajectory

    found = load_trajectory(source)
    if lr is None and weight_decay is None:
        return found
    if lr is None or weight_decay is None:
        raise UsageError("a prediction needs both --lr and --weight-decay")
    from specdiag.dynamics.reported_settings import with_settings

    return with_settings(found, lr=lr, weight_decay=weight_decay, steps=max(1, found.steps[-1].step))


def _draw(kind: Kind, reports: list[SpectralReport], chosen: dict[str, Any]) -> Figure:
    from specdiag import plot as figures

    choice = {ARGUMENTS.get(name, name): chosen[name] for name in (*CHOICE, "all_rows") if name in chosen}
    basis = {"basis": chosen["basis"].value} if "basis" in chosen else {}
    if kind is Kind.decay:
        return figures.decay(_plan(reports[0], chosen, basis), reports[0])
    if kind is Kind.paper:
        return figures.paper(reports[0], _plan(reports[0], chosen, basis), *reports[1:])
    if kind is Kind.heads:
        return figures.heads(reports[0], metric=chosen.get("metric"))
    if kind is Kind.heatmap:
        return figures.heatmap(reports[0], metric=chosen.get("metric"), **choice)
    return getattr(figures, kind.value)(*reports, **choice, **basis)


def _plan(report: SpectralReport, given: dict[str, Any], basis: dict[str, Any]) -> DecayPlan:
    if "plan" in given:
        from specdiag.decay.plan import load_plan

        if basis:
            raise UsageError("--basis makes a plan, --plan names one: leave one out")
        return load_plan(given["plan"])
    from specdiag.decay.recommend import recommend

    return recommend(report, **basis)


def _logged_decays(source: str) -> bool:
    from specdiag.trajectories.decay_log import has_decay_log

    return has_decay_log(source)


def _is_plan(source: str) -> bool:
    """True for a JSON file that is no report: a plan, or refused as none."""
    from specdiag.report import is_report

    path = Path(source)
    return path.suffix == ".json" and path.is_file() and not is_report(path)
