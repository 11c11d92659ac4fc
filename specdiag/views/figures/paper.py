"""Figures 1a, 1b and 2 of the AlphaDecay paper (arXiv 2506.14562), redrawn from any report and plan.

They are drawn as in the paper, on the raw exponent and without nulls but for the dashes in 1a. Much of what they show
is the shapes of the matrices: `alpha`, `decay` and `scree` show how much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from specdiag.decay.plan import DecayPlan, PlanEntry
from specdiag.records import FAMILIES, ROLES, ModuleRecord, Role
from specdiag.report import SpectralReport
from specdiag.views.figures.axes import Panel, hide_inner
from specdiag.views.figures.balance import types
from specdiag.views.figures.decay import base, check_plan, spread
from specdiag.views.figures.palette import ink_on, palette
from specdiag.views.figures.scree import by_role, draw_curve, relative_singular_values
from specdiag.views.figures.selection import check_report, column, few_of_each, null, value
from specdiag.views.figures.style import (
    ReportFigure,
    legend,
    new_figure,
    plan_caption,
    report_caption,
    report_names,
    styled,
)

_ORIGIN = "figures 1a, 1b and 2 of the AlphaDecay paper"
_BY_LAYER_UP_TO = 24
_ENDS = 2
"""Number of layers at either end that the paper colours."""


@styled
def paper(report: SpectralReport, plan: DecayPlan, other: SpectralReport | None = None) -> ReportFigure:
    """Draw bars per module type, the decay of each module with its exponent, and singular values layer by layer.

    Args:
        report: from `analyze` or `load_report`, with its eigenvalues.
        plan: from `recommend`, made from this report.
        other: the report of a checkpoint for the paired bars, such as one trained with uniform decay.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: the report has no alpha or no eigenvalues, or the plan is of another model.
    """
    reports = [report] if other is None else [report, other]
    for name, each in zip(("report", "other"), reports, strict=False):
        check_report(each, name)
    name = column(report, "alpha")
    check_plan(plan, report)
    roles = types(reports, name)
    drawn, notes = few_of_each([r for r in report if r.role in roles and r.family in ("attention", "mlp")])
    groups = by_role(report, drawn)
    columns = min(4, len(groups)) if len(groups) not in (5, 6) else 3
    rows = -(-len(groups) // columns)
    caption = f"{report_caption(*reports, notes=tuple(notes))} · {plan_caption(plan)} · {spread(plan)} · {_ORIGIN}"
    figure = new_figure(11.0, 4.4 + 2.0 * rows, plan.headline, caption)
    above, below = figure.add_gridspec(2, 1, height_ratios=[3.4, 2.0 * rows])
    upper, lower = above.subgridspec(1, 2, width_ratios=[1, 3]), below.subgridspec(rows, columns)
    _medians(figure.add_subplot(upper[0]), reports, roles, name, report_names(reports))
    _decays(figure.add_subplot(upper[1]), plan)
    grid = [
        Panel(figure.add_subplot(lower[i // columns, i % columns]), i % columns == 0, i // columns == rows - 1)
        for i in range(len(groups))
    ]
    _singular_values(grid, report, groups)
    legend(figure)
    return figure


def _medians(
    axes: Axes, reports: Sequence[SpectralReport], roles: Sequence[Role], name: str, labels: Sequence[str]
) -> None:
    """Draw paired horizontal bars: the median exponent of each module type, with that of noise as a dash."""
    thick = 0.8 / len(reports)
    for i, (report, label) in enumerate(zip(reports, labels, strict=True)):
        colour = palette().checkpoints[i]
        for y, role in enumerate(roles):
            own = [r for r in report if r.role == role and r.family in ("attention", "mlp")]
            values = [v for r in own if (v := value(r, name)) is not None]
            if not values:
                continue
            at = y - 0.4 + thick * (i + 0.5)
            axes.barh(at, median(values) - 1, thick * 0.94, left=1, color=colour, label=label)
            axes.text(1, at, f" {median(values):.2f}", va="center", fontsize=7.5, color=ink_on(colour))
            nulls = [v for r in own if (v := null(r, name)) is not None]
            if nulls:
                axes.plot([median(nulls)] * 2, [at - thick / 2, at + thick / 2], color=palette().null, linewidth=1.6,
                          label="random matrix of that shape")  # fmt: skip
    axes.set_ylim(len(roles) - 0.4, -0.6)
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xlim(left=1)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(name)
    axes.set_title("1a: median by module type")


def _decays(axes: Axes, plan: DecayPlan) -> None:
    """Draw a bar a module, layer by layer, the base as a dashed line, and the exponents on an axis of their own.

    Where there are too many layers for that, or several matrices of a role in one, the bars stand role by role.
    """
    layers = {e.layer for e in plan.entries}
    experts = len(plan.entries) > len({(e.component, e.layer, e.role) for e in plan.entries})
    by_layer = len(layers) <= _BY_LAYER_UP_TO and not experts
    entries = sorted(plan.entries, key=_order if by_layer else lambda e: _order(e)[1:] + _order(e)[:1])
    blocks: dict[str, list[PlanEntry]] = defaultdict(list)
    for e in entries:
        blocks[str(e.layer or 0) if by_layer else e.role or "fused"].append(e)
    if by_layer:
        step = 0.86 / max(map(len, blocks.values()))
        places = [at - 0.43 + step * (i + 0.5) for at, block in enumerate(blocks.values()) for i in range(len(block))]
        widths = [step] * len(places)
    else:
        widths = [0.86 / len(block) for block in blocks.values() for _ in block]
        places = [at - 0.43 + 0.86 / len(b) * (i + 0.5) for at, b in enumerate(blocks.values()) for i in range(len(b))]
    x, decays = np.array(places), [e.ratio * base(plan) for e in entries]
    axes.bar(x, decays, widths, color=[palette().roles[e.role or "other"].colour for e in entries], label="_plan")
    axes.axhline(base(plan), color=palette().ink, linestyle=(0, (5, 2)), linewidth=1, label=f"uniform {base(plan):g}")
    axes.set_xlim(-0.6, len(blocks) - 0.4)
    axes.set_xticks(range(len(blocks)), list(blocks))
    axes.set_xlabel("layer" if by_layer else "role, the layers from left to right")
    axes.set_ylabel("ratio" if plan.base_weight_decay is None else "weight decay")
    axes.set_ylim(0, max(decays) * 1.45)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= max(decays) * 1.05])
    axes.set_title(f"1b: decay of each module ({plan.rule} rule), and its {_value_name(plan)}")
    _values(axes.twinx(), x, entries, _value_name(plan), lines=not by_layer)
    if by_layer:
        shown: dict[Role | None, None] = {e.role: None for e in sorted(entries, key=lambda e: _order(e)[1:])}
        for role in shown:
            axes.bar(0, 0, 0, color=palette().roles[role or "other"].colour, label=role or "fused")


def _values(axes: Axes, x: np.ndarray, entries: Sequence[PlanEntry], name: str, *, lines: bool) -> None:
    """Draw the values of the rule in the upper part of the panel, with ticks at its values alone.

    Lines run along the layers of a role, never from one role to another.
    """
    values = np.array([np.nan if e.value is None else e.value for e in entries])
    colour = palette().ink
    runs = list(dict.fromkeys(e.role for e in entries)) if lines else [None]
    for i, role in enumerate(runs):
        own = np.array([not lines or e.role == role for e in entries])
        axes.plot(x[own], values[own], "-" if lines else "o", markersize=2.5, color=colour, linewidth=0.8,
                  label="_values" if i else name)  # fmt: skip
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    extent = high - low or 1.0
    axes.set_yticks([tick for tick in MaxNLocator(4).tick_values(low, high) if low - 0.1 * extent <= tick <= high])
    axes.set_ylim(low - 1.9 * extent, high + 0.1 * extent)
    axes.set_ylabel(name, y=0.83)
    axes.spines["right"].set_visible(True)


def _singular_values(grid: Sequence[Panel], report: SpectralReport, groups: dict[str, list[ModuleRecord]]) -> None:
    """Draw singular values over the largest by rank.

    The first two layers and the last two are coloured, the others grey.
    """
    hide_inner(grid)
    layers = sorted({r.layer for group in groups.values() for r in group if r.layer is not None})
    longest = max(r.n_eigenvalues for group in groups.values() for r in group)
    n = min(_ENDS, len(layers) // 2)
    (first_colour, last_colour), between = palette().checkpoints[:2], palette().faint
    ends = dict.fromkeys(layers[len(layers) - n :], last_colour) | dict.fromkeys(layers[:n], first_colour)
    for i, (panel, (role, group)) in enumerate(zip(grid, groups.items(), strict=True)):
        for r in sorted(group, key=lambda r: r.layer in ends):
            colour = between if r.layer is None else ends.get(r.layer, between)
            draw_curve(panel.axes, relative_singular_values(report, r), logarithmic=False, color=colour)
        panel.axes.set_title(f"2: {role}" if i == 0 else role)
        panel.axes.set_xlim(-0.02 * longest, longest * 1.02)
        panel.axes.set_ylim(0, 1.04)
        panel.axes.locator_params(axis="x", nbins=4)
        panel.axes.set_xlabel("rank" if panel.bottom else "")
        panel.axes.set_ylabel("singular value / largest" if panel.left else "")
    drawn = {line.get_color() for line in grid[0].axes.lines}
    for colour, what in (
        (first_colour, f"first {n} layers"),
        (between, "layers between"),
        (last_colour, f"last {n} layers"),
    ):
        if colour in drawn:
            grid[0].axes.plot([], [], color=colour, label=what.replace("1 layers", "layer"))


def _order(entry: PlanEntry) -> tuple[int, int, int]:
    return entry.layer or 0, FAMILIES.index(entry.family), ROLES.index(entry.role or "other")


def _value_name(plan: DecayPlan) -> str:
    return {"square": "square_alpha", "farms": "alpha"}.get(plan.basis, plan.basis)
