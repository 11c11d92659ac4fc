"""A decay plan against its uniform base: what each matrix gets, and what random weights would."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from matplotlib.axes import Axes

from specdiag.decay.plan import DecayPlan, PlanEntry
from specdiag.errors import UsageError
from specdiag.records import FAMILIES, ROLES, Role
from specdiag.report import SpectralReport
from specdiag.text import checks
from specdiag.views.figures.axes import hide_inner, layer_axis, panels
from specdiag.views.figures.selection import check_report
from specdiag.views.figures.style import (
    FAINT,
    INK,
    NULL,
    ROLE_STYLES,
    ReportFigure,
    legend,
    new_figure,
    plan_caption,
    styled,
)

_WHISKERS_UP_TO = 40
"""Number of bars in a panel beyond which the lines of the tail fractions would hide them."""


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
    width = columns * min(3.2, 2.0 + 0.05 * n_layers) + 2.4
    figure = new_figure(width, 2.1 * rows + 1.1, title(plan), plan_caption(plan))
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
            panel.axes.set_ylabel("ratio" if plan.base_weight_decay is None else "weight decay")
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


def title(plan: DecayPlan) -> str:
    """Say whether to use the plan, and how it spreads the decay."""
    ratios = [entry.ratio for entry in plan.entries]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} times the base, mean {plan.mean_ratio:.2f}"
    return f"{plan.headline} Weight decay by module: {spread}".lstrip()


def _bars(axes: Axes, entries: Sequence[PlanEntry], uniform: float, *, whiskers: bool) -> None:
    by_layer: dict[int, list[PlanEntry]] = defaultdict(list)
    for entry in entries:
        by_layer[entry.layer or 0].append(entry)
    slot = 0.8 if whiskers else 1.0
    width = slot / max(len(group) for group in by_layer.values())
    places = [(x - slot / 2 + width * (i + 0.5), e) for x, group in by_layer.items() for i, e in enumerate(group)]
    colour = ROLE_STYLES[entries[0].role or "other"].colour
    x = [place for place, _ in places]
    axes.bar(x, [(e.ratio - 1) * uniform for _, e in places], width, bottom=uniform, color=colour, label="_plan")
    ranged = [
        (place, e.ratio_25, e.ratio_75) for place, e in places if e.ratio_25 is not None and e.ratio_75 is not None
    ]
    if ranged and whiskers:
        x, low, high = zip(*((p, a * uniform, b * uniform) for p, a, b in ranged), strict=True)
        axes.vlines(x, low, high, color="white", linewidth=2.6)
        axes.vlines(x, low, high, color=INK, linewidth=1, label="tail fraction\n0.25 to 0.75")
    twins = [(place, e.random_ratio * uniform) for place, e in places if e.random_ratio is not None]
    if twins:
        axes.hlines([y for _, y in twins], [p - width / 2 for p, _ in twins], [p + width / 2 for p, _ in twins],
                    color=NULL, linewidth=2, label="if the weights\nwere random")  # fmt: skip
    axes.axhline(uniform, color=FAINT, linestyle=(0, (5, 2)), linewidth=1, label=f"uniform {uniform:g}")


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
