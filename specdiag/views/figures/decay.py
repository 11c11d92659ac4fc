"""A decay plan against its uniform base: what each matrix gets, and what random weights would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from matplotlib.axes import Axes

from specdiag.decay.plan import DecayPlan, PlanEntry
from specdiag.errors import UsageError
from specdiag.records import FAMILIES, ROLES, Role
from specdiag.report import SpectralReport
from specdiag.text import checks
from specdiag.views.figures.axes import hide_inner, layer_axis, panels
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import check_report
from specdiag.views.figures.style import (
    ReportFigure,
    legend,
    new_figure,
    plan_caption,
    styled,
)

_WHISKERS_UP_TO = 40
"""Number of bars in a panel beyond which the lines of the tail fractions would hide them."""
_EACH_UP_TO = 4
"""Number of matrices of a role in a layer beyond which a bar is their median, and a line their range."""
_TAIL_FRACTION, _RANGE = "tail fraction\n0.25 to 0.75", "range of the matrices\nof a layer"


@styled
def decay(plan: DecayPlan, report: SpectralReport | None = None) -> ReportFigure:
    """Draw a panel a role, a bar a Parameter from the uniform base to its own decay.

    A dash shows the decay that the same rule gives random weights of these shapes. A thin line shows how far the decay
    moves between the tail fractions 0.25 and 0.75.

    Args:
        plan: from `recommend` or `load_plan`.
        report: the report that the plan is of, which is checked; None checks nothing.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: the plan is of another model.
    """
    checks.instance("plan", plan, DecayPlan, "from recommend or load_plan")
    if report is not None:
        check_plan(plan, report)
    groups: dict[Role | None, list[PlanEntry]] = defaultdict(list)
    for entry in sorted(plan.entries, key=lambda e: (FAMILIES.index(e.family), ROLES.index(e.role or "other"))):
        groups[entry.role].append(entry)
    columns = min(4, len(groups)) if len(groups) not in (5, 6) else 3
    rows = -(-len(groups) // columns)
    n_layers = len({entry.layer for entry in plan.entries})
    most = max(map(len, groups.values()))
    width = columns * min(3.2, 2.0 + 0.05 * n_layers) + 0.6
    figure = new_figure(width, 2.1 * rows + 1.1, plan.headline, f"{plan_caption(plan)} · {spread(plan)}")
    low, high = _limits(plan)
    grid = panels(figure, len(groups), columns)
    hide_inner(grid)
    for panel, (role, entries) in zip(grid, groups.items(), strict=True):
        _bars(panel.axes, entries, base(plan), whiskers=most <= _WHISKERS_UP_TO)
        panel.axes.set_title(role or "fused")
        panel.axes.set_ylim(low, high)
        layer_axis(panel.axes.xaxis, {entry.layer or 0 for entry in plan.entries}, 8, label=panel.bottom)
        panel.axes.set_xlim(*_span(plan.entries))
        if panel.left:
            panel.axes.set_ylabel("decay / base" if plan.base_weight_decay is None else "weight decay")
    legend(figure)
    return figure


def check_plan(plan: DecayPlan, report: SpectralReport) -> None:
    """Check that a plan fits a report.

    Args:
        plan: from `recommend` or `load_plan`.
        report: from `analyze` or `load_report`.

    Raises:
        UsageError: one is neither, or the plan names modules that the report does not know.
    """
    check_report(report)
    checks.instance("plan", plan, DecayPlan, "from recommend or load_plan")
    unknown = {e.name for e in plan.entries} - {r.name for r in report}
    if unknown:
        raise UsageError(f"the plan is of another model: {report.source} has no {min(unknown)}")


def base(plan: DecayPlan) -> float:
    """Give the uniform decay, 1 where only ratios are known."""
    return 1.0 if plan.base_weight_decay is None else plan.base_weight_decay


def spread(plan: DecayPlan) -> str:
    """Say how far the decays of a plan lie apart."""
    ratios = [entry.ratio for entry in plan.entries]
    return f"decay {min(ratios):.2f} to {max(ratios):.2f} times the base, mean {plan.mean_ratio:.2f}"


def _bars(axes: Axes, entries: Sequence[PlanEntry], uniform: float, *, whiskers: bool) -> None:
    by_layer: dict[int, list[PlanEntry]] = defaultdict(list)
    for entry in entries:
        by_layer[entry.layer or 0].append(entry)
    look, colour = palette(), palette().roles[entries[0].role or "other"].colour
    if max(map(len, by_layer.values())) > _EACH_UP_TO:
        bars = [_median_bar(layer, group, uniform) for layer, group in by_layer.items()]
        width, whiskers, label = 0.8, True, _RANGE
    else:
        slot, label = 0.8 if whiskers else 1.0, _TAIL_FRACTION
        width = slot / max(map(len, by_layer.values()))
        bars = [
            _bar(layer - slot / 2 + width * (i + 0.5), entry, uniform)
            for layer, group in by_layer.items()
            for i, entry in enumerate(group)
        ]
    axes.bar([b.x for b in bars], [b.decay - uniform for b in bars], width, bottom=uniform, color=colour, label="_plan")
    ranged = [(b.x, *b.extent) for b in bars if b.extent is not None]
    if ranged and whiskers:
        x, low, high = zip(*ranged, strict=True)
        axes.vlines(x, low, high, color=look.paper, linewidth=2.6)
        axes.vlines(x, low, high, color=look.ink, linewidth=1, label=label)
    twins = [(b.x, b.random) for b in bars if b.random is not None]
    if twins:
        axes.hlines([y for _, y in twins], [x - width / 2 for x, _ in twins], [x + width / 2 for x, _ in twins],
                    color=look.null, linewidth=2, label="if the weights\nwere random")  # fmt: skip
    if all(entry.value is None for entry in entries):
        axes.text(0.5, 0.5, "no value for the rule:\nuniform decay", ha="center", va="center", fontsize=8,
                  color=look.faint, transform=axes.transAxes)  # fmt: skip
    axes.axhline(uniform, color=look.faint, linestyle=(0, (5, 2)), linewidth=1, label=f"uniform {uniform:g}")


class _Bar(NamedTuple):
    """A decay at its place, with how far it may lie elsewhere, and that of random weights."""

    x: float
    decay: float
    extent: tuple[float, float] | None
    random: float | None


def _bar(x: float, entry: PlanEntry, uniform: float) -> _Bar:
    low, high, random = entry.ratio_25, entry.ratio_75, entry.random_ratio
    extent = None if low is None or high is None else (low * uniform, high * uniform)
    return _Bar(x, entry.ratio * uniform, extent, None if random is None else random * uniform)


def _median_bar(layer: int, entries: Sequence[PlanEntry], uniform: float) -> _Bar:
    """Take the median of the experts of a layer, and their range."""
    decays, randoms = ([v * uniform for e in entries if (v := getattr(e, name)) is not None]
                       for name in ("ratio", "random_ratio"))  # fmt: skip
    return _Bar(layer, median(decays), (min(decays), max(decays)), median(randoms) if randoms else None)


def _span(entries: Sequence[PlanEntry]) -> tuple[float, float]:
    layers = [entry.layer or 0 for entry in entries]
    return min(layers) - 0.7, max(layers) + 0.7


def _limits(plan: DecayPlan) -> tuple[float, float]:
    ratios = [
        1.0,
        *(r for e in plan.entries for r in (e.ratio, e.random_ratio, e.ratio_25, e.ratio_75) if r is not None),
    ]
    high = max(ratios)
    return min(0.0, *ratios) * base(plan), high * 1.05 * base(plan)
