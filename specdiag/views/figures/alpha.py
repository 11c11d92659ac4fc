"""Attention against MLP: the exponent of every layer and role, beside what noise of those shapes scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes

from specdiag.errors import UsageError
from specdiag.records import FAMILIES, Family, ModuleRecord
from specdiag.report import SpectralReport
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import layer_axis
from specdiag.views.figures.selection import Basis, check_report, choose, column, in_role_order, null, value
from specdiag.views.figures.style import (
    FAMILY_TITLES,
    NULL,
    ROLE_STYLES,
    ReportFigure,
    legend,
    new_figure,
    plain,
    report_caption,
    styled,
)

Groups = Mapping[str, Sequence[ModuleRecord]]
_NULL_DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))


@styled
def alpha(
    report: SpectralReport,
    *,
    basis: Basis | None = None,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
) -> ReportFigure:
    """Draw exponents by layer: a line a role, the null of its shape dashed, and the range of each role at the right.

    Matrices outside of the layers (embeddings) are left out, unless there are no others. Where a role has several
    matrices in a layer (experts), the line is their median and the band their range.

    Args:
        report: from `analyze` or `load_report`.
        basis: `square` for square_alpha, in which shapes play no part, or `alpha`; None for square where the report
            has it.
        include: globs on names; only these.
        layers: only these.
        roles: only these.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in the report.
    """
    check_report(report)
    has_square = any(r.square_alpha is not None for r in report)
    name = column(report, basis or ("square" if has_square else "alpha"))
    valued = [r for r in choose(report, include, layers, roles) if value(r, name) is not None]
    if not valued:
        raise UsageError(f"{report.source}: no matrix that was asked for has a value of {name}")
    layered = [r for r in valued if r.layer is not None]
    chosen = layered or valued
    rows: dict[str | None, list[ModuleRecord]] = defaultdict(list)
    for r in in_role_order(chosen):
        rows[r.component].append(r)
    families: list[Family] = [f for f in FAMILIES if any(r.family == f for r in layered)]
    n_roles = max(len({role_label(r) for r in row}) for row in rows.values())
    width = max(3.6 * len(families) + 1.2 + 0.28 * n_roles + 1.4, 6.4)
    figure = new_figure(width, 3.6 * len(rows) + 0.9, _title(report, name), report_caption(report))
    ratios = [3.6] * len(families) + [0.7 + 0.28 * n_roles]
    grid = figure.subplots(len(rows), len(families) + 1, squeeze=False, sharey=True, width_ratios=ratios)
    for axes, (component, row) in zip(grid, rows.items(), strict=True):
        for panel, family in zip(axes, families, strict=False):
            members = [r for r in row if r.family == family]
            if not members:
                panel.set_axis_off()
                continue
            _lines(panel, _by_role(members), name)
            _nulls(panel, _by_role(members), name)
            title = FAMILY_TITLES[family]
            panel.set_title(title if component is None else plain(f"{component}: {title}"))
            layer_axis(panel.xaxis, {r.layer or 0 for r in row}, 12)
        _spread(axes[-1], _by_role(row), name, "" if families else "random matrices of that shape")
        axes[-1].set_title("median and range")
        axes[0].set_ylabel(name)
        for panel in axes:
            panel.yaxis.set_tick_params(labelleft=panel is axes[0])
    legend(figure)
    return figure


def _spread(axes: Axes, groups: Groups, column: str, null_label: str) -> None:
    """Draw the range of each role as a line, its median as the role's marker, and the median null as a dash."""
    for x, (_, records) in enumerate(groups.items()):
        values = [v for r in records if (v := value(r, column)) is not None]
        nulls = [v for r in records if (v := null(r, column)) is not None]
        look = ROLE_STYLES[records[0].role]
        axes.plot([x, x], [min(values), max(values)], color=look.colour, alpha=0.45, linewidth=4, solid_capstyle="butt")
        axes.plot(
            x,
            median(values),
            look.marker,
            color=look.colour,
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=7,
        )
        if nulls:
            axes.plot(
                [x - 0.38, x + 0.38],
                [median(nulls)] * 2,
                color=NULL,
                linestyle=_NULL_DASHES[0],
                linewidth=1.2,
                label=null_label,
            )
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(range(len(groups)), groups, rotation=90)


def _lines(axes: Axes, groups: Groups, name: str) -> None:
    for label, records in groups.items():
        look = ROLE_STYLES[records[0].role]
        by_layer: dict[int, list[float]] = defaultdict(list)
        for r in sorted(records, key=lambda r: r.layer or 0):
            if (v := value(r, name)) is not None:
                by_layer[r.layer or 0].append(v)
        style = ":" if records[0].cross_attention else "-"
        size = 4.5 if len(by_layer) <= 30 else 3
        line = [median(values) for values in by_layer.values()]
        axes.plot(list(by_layer), line, style, marker=look.marker, color=look.colour, markersize=size, label=label)
        if len(records) > len(by_layer):
            low, high = [min(values) for values in by_layer.values()], [max(values) for values in by_layer.values()]
            axes.fill_between(list(by_layer), low, high, color=look.colour, alpha=0.2, linewidth=0)


def _nulls(axes: Axes, groups: Groups, name: str) -> None:
    """Draw the score of noise of each role's shape, once for roles that share it."""
    shared: dict[tuple[tuple[int, float], ...], list[str]] = defaultdict(list)
    for label, records in groups.items():
        levels = {r.layer or 0: v for r in records if (v := null(r, name)) is not None}
        if levels:
            shared[tuple(sorted(levels.items()))].append(label)
    for dashes, (levels, labels) in zip(_NULL_DASHES * len(shared), shared.items(), strict=False):
        colour = NULL if len(labels) > 1 else ROLE_STYLES[groups[labels[0]][0].role].colour
        x, y = [layer for layer, _ in levels], [v for _, v in levels]
        at = f" {y[0]:.2f}" if max(y) - min(y) < 0.005 else ""
        axes.plot(
            [x[0] - 0.4, *x, x[-1] + 0.4],
            [y[0], *y, y[-1]],
            color=colour,
            linestyle=dashes,
            linewidth=1.2,
            label=f"null{at}: {' '.join(dict.fromkeys(groups[label][0].role for label in labels))}",
        )


def _by_role(records: Sequence[ModuleRecord]) -> dict[str, list[ModuleRecord]]:
    groups: dict[str, list[ModuleRecord]] = defaultdict(list)
    for r in records:
        groups[role_label(r)].append(r)
    return groups


def _title(report: SpectralReport, name: str) -> str:
    what = "the shape-free exponent" if name == "square_alpha" else "exponent of the upper eigenvalues"
    return f"{name} by layer and role: {what} (smaller: heavier tail)"
