"""`specdiag plot`: a figure of a report, a plan or a checkpoint."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdiag.errors import UsageError

from . import opening, options, output

if TYPE_CHECKING:
    from specdiag.decay.plan import DecayPlan
    from specdiag.dynamics.norm_log import NormLog
    from specdiag.report import SpectralReport
    from specdiag.trajectories.records import Trajectory


class Kind(StrEnum):
    """What is drawn."""

    esd = "esd"
    alpha = "alpha"
    balance = "balance"
    heatmap = "heatmap"
    decay = "decay"
    scree = "scree"
    paper = "paper"
    trajectory = "trajectory"
    norms = "norms"


class Basis(StrEnum):
    """Which exponent."""

    alpha = "alpha"
    square = "square"


_CHOICE = ("module", "layer", "role")
_TAKES: dict[Kind, tuple[str, ...]] = {
    Kind.esd: _CHOICE,
    Kind.alpha: (*_CHOICE, "basis"),
    Kind.balance: ("basis",),
    Kind.heatmap: (*_CHOICE, "metric"),
    Kind.decay: ("basis", "plan"),
    Kind.scree: _CHOICE,
    Kind.paper: ("plan",),
    Kind.trajectory: ("role", "metric"),
    Kind.norms: ("role", "lr", "weight_decay"),
}
_SOURCES = {Kind.esd: 6, Kind.balance: 2, Kind.paper: 2}
_ANALYSIS = ("device", "jobs", "memory")


@output.guarded
def plot(
    ctx: typer.Context,
    kind: Annotated[Kind, typer.Argument(help="What is drawn.", show_default=False)],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Saved report, hub id, directory or weight file; for decay also a plan or a run of train; for "
            "trajectory and norms what 'specdiag trajectory' left, for norms also a run with NormWatch. esd, balance "
            "and paper take several.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png, .svg or .pdf file.", show_default="SOURCE.KIND.png here"),
    ] = None,
    module: Annotated[
        list[str] | None, typer.Option("--module", metavar="GLOB", help="Only such names; repeatable.")
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", metavar="N", help="Only this layer; repeatable.")
    ] = None,
    role: options.RoleOption = None,
    basis: Annotated[
        Basis | None,
        typer.Option("--basis", help="alpha, or square: shape-free.", show_default="balance: square; else alpha"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="COLUMN", help="Of heatmap and trajectory.", show_default="alpha_square"),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Saved plan.", show_default="recommend's default")
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Of norms: predict the norms of AdamW at this lr, held.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="And with this decay. NormWatch logs both.")
    ] = None,
    dpi: Annotated[int, typer.Option("--dpi", min=30, max=1200, help="Dots per inch of a png.")] = 150,
    device: options.DeviceOption = "auto",
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
) -> None:
    """Draw into a file: esd, alpha, balance, heatmap, decay, scree, the paper's figures, trajectory, norms.

    Best from a saved report; a checkpoint is analysed first. Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    given: dict[str, Any] = {
        "module": module, "layer": layer, "role": role, "basis": basis, "metric": metric, "plan": plan, "lr": lr,
        "weight_decay": weight_decay,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    _check(kind, sources, given)
    out = out or Path(f"{opening.stem(sources[0])}.{kind}.png")
    from specdiag import plot as figures

    figures.check_target(out)
    analysis = {name: value for name in _ANALYSIS if (value := ctx.params[name]) not in (None, "auto")}
    if kind is Kind.decay and not given and _logged_decays(sources[0]):
        from specdiag.trajectories.decay_log import load_decay_log

        figure = figures.decay_run(load_decay_log(sources[0]))
    elif kind is Kind.decay and "plan" not in given and _may_be_plan(sources[0]):
        from specdiag.decay.plan import load_plan

        figure = figures.decay(load_plan(sources[0]))
    elif kind is Kind.trajectory:
        from specdiag.trajectories.load import load_trajectory

        figure = figures.trajectory(load_trajectory(sources[0]), metric=metric, roles=role or [])
    elif kind is Kind.norms:
        figure = figures.norms(_norms(sources[0], lr, weight_decay), roles=role or [])
    else:
        figure = _draw(kind, [opening.report_of(source, analysis, "figure") for source in sources], given)
    figures.save(figure, out, dpi=dpi)
    output.talk(f"written: {out}", "green")


def _check(kind: Kind, sources: list[str], given: dict[str, Any]) -> None:
    """Refuse what this kind would ignore."""
    if strange := options.listed(name for name in given if name not in _TAKES[kind]):
        raise UsageError(f"{kind} knows no {strange}; it takes {options.listed(_TAKES[kind])}")
    most = _SOURCES.get(kind, 1)
    if len(sources) > most:
        raise UsageError(f"{kind} takes {most} SOURCE{'S' if most > 1 else ''} at most, not {len(sources)}")


def _norms(source: str, lr: float | None, weight_decay: float | None) -> Trajectory | NormLog:
    """What a norm watch logged, else the checkpoints of a trajectory, with the settings that were told."""
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


def _draw(kind: Kind, reports: list[SpectralReport], given: dict[str, Any]) -> Any:
    from specdiag import plot as figures

    choice = {f"{name}s": given[name] for name in _CHOICE if name in given}
    basis = {"basis": given["basis"].value} if "basis" in given else {}
    if kind is Kind.decay:
        return figures.decay(_plan(reports[0], given, basis), reports[0])
    if kind is Kind.paper:
        return figures.paper(reports[0], _plan(reports[0], given, basis), *reports[1:])
    if kind is Kind.heatmap:
        return figures.heatmap(reports[0], metric=given.get("metric"), **choice)
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


def _may_be_plan(source: str) -> bool:
    from specdiag.report import is_report

    path = Path(source)
    return path.suffix == ".json" and path.is_file() and not is_report(path)
