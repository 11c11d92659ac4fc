"""How balanced the exponents of one or two checkpoints are: by module type, by group, and as the score."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from specdiag.errors import UsageError
from specdiag.records import ROLES, ModuleRecord, Role
from specdiag.report import SpectralReport
from specdiag.spectra.square import square_sd
from specdiag.views.figures.axes import Panel
from specdiag.views.figures.density import Curve, curve, draw, finish, span_of
from specdiag.views.figures.examples import GROUPS, Group
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import Basis, by_place, check_report, column, null, value
from specdiag.views.figures.style import (
    ReportFigure,
    legend,
    new_figure,
    report_caption,
    report_names,
    styled,
)

_MARKERS = "os"
_LINES = ("-", "--")
_NOISE = "random matrices"
_WHOLE_FROM = 3
"""Number of times from which its decimals say nothing."""


@styled
def balance(report: SpectralReport, other: SpectralReport | None = None, *, basis: Basis = "square") -> ReportFigure:
    """Draw four views of how far the exponents of a checkpoint lie apart, of one or two checkpoints.

    Median, middle half and range per module type beside random matrices of these shapes, with two standard deviations
    of those where they are known; means of q and k, v and o, and the MLP with the range from smallest to largest;
    spectra of an attention and an MLP matrix of the middle layer; and the balance score, standard deviation and range
    of square_alpha, which the report itself states.

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
    groups = [g for g in GROUPS if any(_values(each, g.roles, name) for each in reports)]
    examples = [pair for family in ("attention", "mlp") if (pair := _example(reports, family))]
    notes = () if examples else ("saved without eigenvalues: no densities",)
    upper = 0.9 + 0.22 * len(roles) * (1 + len(reports))
    caption = report_caption(*reports, notes=notes)
    figure = new_figure(8.6, upper + 1.2 + (2.6 if examples else 0), _title(reports, name), caption)
    rows = [max(upper, 2.4), 2.6] if examples else [upper]
    grid = figure.add_gridspec(len(rows), 2, height_ratios=rows)
    by_type, means = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    labels = [f"{n}, {score(each)}" for n, each in zip(report_names(reports), reports, strict=True)]
    _types(by_type, reports, roles, name, labels)
    _means(means, reports, groups, name)
    if examples:
        places = [figure.add_subplot(grid[1, i]) for i in range(len(examples))]
        _densities(places, examples)
    legend(figure)
    return figure


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


def noise_sd(records: Sequence[ModuleRecord]) -> float | None:
    """Compute the balance score that random matrices have in the place of these.

    Args:
        records: those with square_alpha count.

    Returns:
        The standard deviation over all of them, of their own spread and of the means that differ with the shape; None
        without any.
    """
    nulls = [(v, square_sd(r.living_shape)) for r in records if (v := null(r, "square_alpha")) is not None]
    return float(np.hypot(np.std([v for v, _ in nulls]), fmean(s**2 for _, s in nulls) ** 0.5)) if nulls else None


def _title(reports: Sequence[SpectralReport], name: str) -> str:
    """Compare the spread of the exponents with that of noise, where that is known."""
    inside = [r for report in reports for r in _inside(report)]
    noise, spreads = noise_sd(inside), [report.summary.balance_sd for report in reports]
    if name != "square_alpha" or noise is None or None in spreads:
        return f"Balance of {name}: the closer the exponents lie together, the more balanced"
    known = [spread for spread in spreads if spread is not None]
    stated = " and ".join(f"{spread:.3f}" for spread in known)
    times = " and ".join(_times(spread / noise) for spread in known)
    return (
        f"Balance: square_alpha spreads {times} times as widely as in random matrices "
        f"(standard deviation {stated} against {noise:.3f})"
    )


def _times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= _WHOLE_FROM else f"{ratio:.1f}"


def _types(
    axes: Axes, reports: Sequence[SpectralReport], roles: Sequence[Role], name: str, labels: Sequence[str]
) -> None:
    """Draw range, middle half and median of each module type, beside the spread of noise."""
    thick, halo = 0.8 / len(reports), [Stroke(linewidth=3, foreground=palette().paper), Normal()]
    for y, role in enumerate(roles):
        _noise(axes, [r for report in reports for r in _inside(report) if r.role == role], name, (y - 0.45, y + 0.45))
    for i, (report, label) in enumerate(zip(reports, labels, strict=True)):
        colour = palette().checkpoints[i]
        for y, role in enumerate(roles):
            values = _values(report, (role,), name)
            if not values:
                continue
            at, (low, high) = y - 0.4 + thick * (i + 0.5), np.quantile(values, (0.25, 0.75))
            axes.plot([min(values), max(values)], [at, at], color=colour, linewidth=1)
            axes.plot([low, high], [at, at], color=colour, linewidth=4, alpha=0.5, solid_capstyle="butt")
            axes.plot(median(values), at, _MARKERS[i], color=colour, markersize=6, linestyle="none", label=label)
            axes.annotate(f"{median(values):.2f}", (median(values), at), xytext=(0, 4), textcoords="offset points",
                          ha="center", va="bottom", fontsize=7.5, color=colour, path_effects=halo)  # fmt: skip
    axes.set_ylim(len(roles) - 0.4, -0.6)
    axes.set_yticks(range(len(roles)), roles)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"{name} (left: heavier tail)")
    axes.set_title("median, middle half and range by module type")


def _noise(axes: Axes, records: Sequence[ModuleRecord], name: str, across: tuple[float, float]) -> None:
    """Draw what noise scores in the place of some matrices, from `across[0]` to `across[1]` on the vertical axis."""
    nulls = [v for r in records if (v := null(r, name)) is not None]
    if not nulls:
        return
    colour = palette().null
    axes.plot([median(nulls)] * 2, across, color=colour, linewidth=1.6, linestyle=(0, (3, 1)), label=_NOISE)
    if name == "square_alpha":
        reach = 2 * median(square_sd(r.living_shape) for r in records if r.square_alpha is not None)
        corner, height = (median(nulls) - reach, across[0]), across[1] - across[0]
        axes.add_patch(Rectangle(corner, 2 * reach, height, color=colour, alpha=0.25, linewidth=0,
                                 label="mean ± 2 standard deviations of these"))  # fmt: skip


def _means(axes: Axes, reports: Sequence[SpectralReport], groups: Sequence[Group], name: str) -> None:
    for i, report in enumerate(reports):
        colour = palette().checkpoints[i]
        for x, group in enumerate(groups):
            values = _values(report, group.roles, name)
            if not values:
                continue
            at = x + (i - (len(reports) - 1) / 2) * 0.3
            axes.bar(at, max(values) - min(values), 0.22, bottom=min(values), color=colour, alpha=0.35)
            axes.plot(at, fmean(values), group.marker, color=colour, markeredgecolor=palette().ink, markersize=7)
    if name == "square_alpha":
        inside = [r for report in reports for r in _inside(report)]
        level = median(v for r in inside if (v := null(r, name)) is not None)
        axes.axhline(level, color=palette().null, linewidth=1.6, linestyle=(0, (3, 1)))
    axes.use_sticky_edges = False
    axes.margins(y=0.08)
    axes.set_xticks(range(len(groups)), [g.name for g in groups])
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(name)
    axes.set_title("mean and range by group")


def _densities(places: Sequence[Axes], examples: Sequence[Sequence[Curve]]) -> None:
    span = span_of([c for pair in examples for c in pair], details=True)
    heights: list[float] = []
    for axes, pair in zip(places, examples, strict=True):
        heights += draw(axes, pair, span, details=True)
        r = pair[0].record
        alphas = " / ".join("none" if c.record.alpha is None else f"{c.record.alpha:.2f}" for c in pair)
        random = "" if r.alpha_null is None or len(pair) > 1 else f", random {r.alpha_null:.2f}"
        axes.set_title(f"{'' if r.layer is None else f'layer {r.layer} '}{r.role}: alpha {alphas}{random}")
    finish([Panel(axes, i == 0, True) for i, axes in enumerate(places)], [span] * len(places), heights, 5)


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
            curve(report, r, palette().checkpoints[i], "_density", _LINES[i])
            for i, report, r in counterparts
            if r is not None
        ]
    except UsageError:
        return []
    return [c for c in curves if c is not None]


def _inside(report: SpectralReport) -> list[ModuleRecord]:
    return [r for r in report if r.family in ("attention", "mlp")]


def _values(report: SpectralReport, roles: Sequence[Role], name: str) -> list[float]:
    return [v for r in _inside(report) if r.role in roles and (v := value(r, name)) is not None]
