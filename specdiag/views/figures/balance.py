"""How balanced the exponents of one or two checkpoints are: by module type, by group, and as the score."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from matplotlib.axes import Axes

from specdiag.errors import UsageError
from specdiag.records import ROLES, Role
from specdiag.report import SpectralReport
from specdiag.views.figures.axes import Panel
from specdiag.views.figures.esd import Curve, curve, draw, finish, span_of
from specdiag.views.figures.selection import Basis, by_place, check_report, column, null, value
from specdiag.views.figures.style import (
    INK,
    NULL,
    REPORT_COLOURS,
    ReportFigure,
    legend,
    new_figure,
    report_caption,
    report_names,
    styled,
)


class Group(NamedTuple):
    """Roles whose exponents are pooled, with the marker of their mean."""

    name: str
    roles: tuple[Role, ...]
    marker: str


_GROUPS = (
    Group("q, k", ("q", "k", "kv"), "o"),
    Group("v, o", ("v", "o"), "s"),
    Group("MLP", ("gate", "up", "down"), "^"),
)
NOISE = "random matrix of that shape"
"""Label of the nulls in a legend."""


@styled
def balance(report: SpectralReport, other: SpectralReport | None = None, *, basis: Basis = "square") -> ReportFigure:
    """Draw four views of how far the exponents of a checkpoint lie apart, of one or two checkpoints.

    Medians per module type as bars beside what noise scores; means of q and k, v and o, and the MLP with the range
    from smallest to largest; spectra of an attention and an MLP matrix of the middle layer; and the balance score,
    standard deviation and range of square_alpha, which the report itself states.

    Args:
        report: from `analyze` or `load_report`.
        other: the report of a checkpoint to compare with, such as one trained with another decay.
        basis: `square` for square_alpha, which may be compared across shapes, or `alpha` as in the AlphaDecay paper.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: a report has no such exponents.
    """
    reports = [report] if other is None else [report, other]
    for name, each in zip(("report", "other"), reports, strict=False):
        check_report(each, name)
    name = next(column(r, basis) for r in reversed(reports))
    roles = types(reports, name)
    groups = [g for g in _GROUPS if any(_values(each, g.roles, name) for each in reports)]
    examples = [pair for family in ("attention", "mlp") if (pair := _example(reports, family))]
    notes = () if examples else ("saved without eigenvalues: no densities",)
    title = "Balance: the closer the exponents lie together, the more balanced"
    upper = 0.9 + 0.22 * len(roles) * (1 + len(reports))
    figure = new_figure(9.8, upper + 1.0 + (2.6 if examples else 0), title, report_caption(*reports, notes=notes))
    rows = [max(upper, 2.4), 2.6] if examples else [upper]
    grid = figure.add_gridspec(len(rows), 2, height_ratios=rows)
    bars, means = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    labels = [f"{n}\n{score(each)}" for n, each in zip(report_names(reports), reports, strict=True)]
    draw_types(bars, reports, roles, name, labels)
    _means(means, reports, groups, name)
    if examples:
        places = [figure.add_subplot(grid[1, i]) for i in range(len(examples))]
        _densities(places, examples)
    legend(figure)
    return figure


def draw_types(
    axes: Axes, reports: Sequence[SpectralReport], roles: Sequence[Role], name: str, labels: Sequence[str]
) -> None:
    """Draw paired horizontal bars: the median exponent of each module type, with that of noise as a dash.

    Args:
        axes: an empty panel.
        reports: a bar of each for every role.
        roles: the module types, from the top.
        name: the column, `alpha` or `square_alpha`.
        labels: of the reports, for the legend.
    """
    thick = 0.8 / len(reports)
    for i, (report, label) in enumerate(zip(reports, labels, strict=True)):
        for y, role in enumerate(roles):
            values = _values(report, (role,), name)
            if not values:
                continue
            at = y - 0.4 + thick * (i + 0.5)
            axes.barh(at, median(values) - 1, thick * 0.94, left=1, color=REPORT_COLOURS[i], label=label)
            axes.text(1, at, f" {median(values):.2f}", va="center", fontsize=7.5, color=INK if i else "white")
            nulls = [v for r in report if r.role == role and (v := null(r, name)) is not None]
            if nulls:
                axes.plot([median(nulls)] * 2, [at - thick / 2, at + thick / 2], color=NULL, linewidth=1.6, label=NOISE)
    axes.set_ylim(len(roles) - 0.4, -0.6)
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xlim(left=1)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(name)
    axes.set_title("median by module type")


def types(reports: Sequence[SpectralReport], name: str) -> list[Role]:
    """Find the roles of attention and MLP that have values, in their order.

    Args:
        reports: those of the figure.
        name: the column.

    Raises:
        UsageError: there is none.
    """
    present = {
        r.role for report in reports for r in report if value(r, name) is not None and r.family in ("attention", "mlp")
    }
    if not present:
        raise UsageError(f"{reports[0].source} has no attention or MLP matrix with a value of {name}")
    return [role for role in ROLES if role in present]


def score(report: SpectralReport) -> str:
    """Write the balance score of a report."""
    sd, extent = report.summary.balance_sd, report.summary.balance_range
    return "no balance score" if sd is None else f"square_alpha: sd {sd:.3f}, range {extent:.3f}"


def _means(axes: Axes, reports: Sequence[SpectralReport], groups: Sequence[Group], name: str) -> None:
    for i, report in enumerate(reports):
        for x, group in enumerate(groups):
            values = _values(report, group.roles, name)
            if not values:
                continue
            at = x + (i - (len(reports) - 1) / 2) * 0.3
            axes.bar(at, max(values) - min(values), 0.22, bottom=min(values), color=REPORT_COLOURS[i], alpha=0.35)
            axes.plot(at, fmean(values), group.marker, color=REPORT_COLOURS[i], markeredgecolor=INK, markersize=7)
    axes.use_sticky_edges = False
    axes.margins(y=0.08)
    axes.set_xticks(range(len(groups)), [g.name for g in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(name)
    axes.set_title("mean and range by group")


def _densities(places: Sequence[Axes], examples: Sequence[Sequence[Curve]]) -> None:
    span = span_of([c for pair in examples for c in pair], details=False)
    heights: list[float] = []
    for axes, pair in zip(places, examples, strict=True):
        heights += draw(axes, pair, span, details=False, markers=True)
        r = pair[0].record
        alphas = " / ".join("none" if c.record.alpha is None else f"{c.record.alpha:.2f}" for c in pair)
        axes.set_title(f"{'' if r.layer is None else f'layer {r.layer} '}{r.role}: alpha {alphas}")
    finish([Panel(axes, i == 0, True) for i, axes in enumerate(places)], span, heights, 5)


def _example(reports: Sequence[SpectralReport], family: str) -> list[Curve]:
    """Find the first matrix of a family in the middle layer, in each report that has it and its eigenvalues."""
    candidates = [(place, r) for place, r in by_place(reports[0]).items() if r.family == family and r.alpha is not None]
    layers = sorted({r.layer for _, r in candidates if r.layer is not None})
    middle = layers[len(layers) // 2] if layers else None
    inside = [(place, r) for place, r in candidates if r.layer == middle]
    if not inside:
        return []
    place, _ = min(inside, key=lambda candidate: ROLES.index(candidate[1].role))
    counterparts = [(i, report, by_place(report).get(place)) for i, report in enumerate(reports)]
    try:
        curves = [
            curve(report, r, REPORT_COLOURS[i], "_density", "os"[i]) for i, report, r in counterparts if r is not None
        ]
    except UsageError:
        return []
    return [c for c in curves if c is not None]


def _values(report: SpectralReport, roles: Sequence[Role], name: str) -> list[float]:
    inside = (r for r in report if r.role in roles and r.family in ("attention", "mlp"))
    return [v for r in inside if (v := value(r, name)) is not None]
