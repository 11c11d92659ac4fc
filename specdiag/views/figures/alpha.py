"""Attention against MLP: the exponent of every layer and role, beside what noise of those shapes scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes

from specdiag.errors import UsageError
from specdiag.records import FAMILIES, Family, ModuleRecord, stored_role
from specdiag.report import SpectralReport
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import layer_axis
from specdiag.views.figures.direct import name_lines
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import (
    Basis,
    check_report,
    choose,
    column,
    common_null,
    in_role_order,
    null,
    value,
)
from specdiag.views.figures.style import FAMILY_TITLES, ReportFigure, new_figure, plain, report_caption, styled

Groups = Mapping[str, Sequence[ModuleRecord]]
_DASHES = (0, (5, 2))
_NULL_DASHES = (_DASHES, (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))
_SLOT = 0.4
"""Inches of a role among the ranges."""
_LEVEL_UP_TO = 5
"""Characters of a role that stand level in them."""
_FAR = 0.3
"""Distance of a layer from the running median, in ranges of all values, beyond which the layer is named."""
_ROOM = 0.06
"""Height of a name in these ranges."""
_EXACT_UP_TO = 16
"""Number of layers beyond which lines from layer to layer would tangle: then they are running medians."""


@styled
def alpha(
    report: SpectralReport,
    *,
    basis: Basis | None = None,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
) -> ReportFigure:
    """Draw exponents by layer: a line a role, the score of noise dashed, and the range of each role at the right.

    Matrices outside of the layers (embeddings) are left out, unless there are no others. Where a role has several
    matrices in a layer (experts), the line is their median and the band their middle half. Over many layers lines are
    running medians among the dots of the layers.

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
    name = column(report, ("square" if has_square else "alpha") if basis is None else basis)
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
    noise = common_null(chosen, name)
    extent = float(np.ptp([v for r in chosen if (v := value(r, name)) is not None]))
    width = max(4.0 * len(families) + 1.4 + _SLOT * n_roles, 6.4)
    caption = report_caption(report, notes=_notes(chosen))
    figure = new_figure(width, 3.6 * len(rows) + 0.9, _title(chosen, name, noise), caption)
    ratios = [3.6] * len(families) + [0.7 + _SLOT * n_roles]
    grid = figure.subplots(len(rows), len(families) + 1, squeeze=False, sharey=True, width_ratios=ratios)
    for axes, (component, row) in zip(grid, rows.items(), strict=True):
        for panel, family in zip(axes, families, strict=False):
            members = [r for r in row if r.family == family]
            if not members:
                panel.set_axis_off()
                continue
            _lines(panel, _by_role(members), name)
            _name_outliers(panel, _by_role(members), name, extent)
            if noise is None:
                _nulls(panel, _by_role(members), name)
            title = FAMILY_TITLES[family]
            panel.set_title(title if component is None else plain(f"{component}: {title}"))
            layer_axis(panel.xaxis, {r.layer or 0 for r in row}, 12)
        _spread(axes[-1], _by_role(row), name, dashes=noise is None)
        axes[-1].set_title("median and range")
        axes[0].set_ylabel(f"{name} (lower: heavier tail)")
        for panel in axes:
            panel.yaxis.set_tick_params(labelleft=panel is axes[0])
            if noise is not None and panel.axison:
                panel.axhline(
                    noise, color=palette().null, linestyle=_DASHES, linewidth=1.2, label=f"random {noise:.2f}"
                )
    name_lines(figure, [panel for panel in grid.flat if panel.axison])
    return figure


def _spread(axes: Axes, groups: Groups, column: str, *, dashes: bool) -> None:
    """Draw the range of each role as a line, its median as the role's marker, and where asked noise as a dash."""
    for x, (_, records) in enumerate(groups.items()):
        values = [v for r in records if (v := value(r, column)) is not None]
        nulls = [v for r in records if (v := null(r, column)) is not None]
        look = palette().roles[stored_role(records[0].role)]
        axes.plot([x, x], [min(values), max(values)], color=look.colour, alpha=0.45, linewidth=4,
                  solid_capstyle="butt", label="_range")  # fmt: skip
        axes.plot(
            x, median(values), look.marker, color=look.colour, markeredgecolor=palette().paper, markeredgewidth=0.6,
            markersize=7, label="_median",
        )  # fmt: skip
        if nulls and dashes:
            label = "random" if x == len(groups) - 1 else "_random"
            axes.plot([x - 0.38, x + 0.38], [median(nulls)] * 2, color=palette().null, linestyle=_DASHES,
                      linewidth=1.2, label=label)  # fmt: skip
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_xticks(range(len(groups)), groups, rotation=0 if max(map(len, groups)) <= _LEVEL_UP_TO else 90)


def _lines(axes: Axes, groups: Groups, name: str) -> None:
    for label, records in groups.items():
        look = palette().roles[stored_role(records[0].role)]
        by_layer = _by_layer(records, name)
        style = ":" if records[0].cross_attention else "-"
        x, line = list(by_layer), [median(values) for values in by_layer.values()]
        if len(x) > _EXACT_UP_TO:
            axes.plot(x, line, look.marker, color=look.colour, markersize=2.5, alpha=0.45, label="_layers")
            smooth, every = _running(line), max(1, len(x) // 6)
            axes.plot(x, smooth, style, marker=look.marker, markevery=(every // 2, every), color=look.colour,
                      linewidth=2, label=label)  # fmt: skip
        else:
            axes.plot(x, line, style, marker=look.marker, color=look.colour, label=label)
        if len(records) > len(by_layer):
            low, high = zip(*(np.quantile(values, (0.25, 0.75)) for values in by_layer.values()), strict=True)
            axes.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _name_outliers(axes: Axes, groups: Groups, name: str, extent: float) -> None:
    """Write the layer beside dots far from the line of their role, the farthest first, where names do not meet."""
    found: list[tuple[float, int, float, str]] = []
    for records in groups.values():
        by_layer = _by_layer(records, name)
        layers, values = list(by_layer), [median(v) for v in by_layer.values()]
        if len(layers) > _EXACT_UP_TO:
            apart = np.abs(np.subtract(values, _running(values)))
            far = int(apart.argmax())
            if apart[far] > _FAR * extent:
                colour = palette().roles[stored_role(records[0].role)].colour
                found.append((float(apart[far]), layers[far], values[far], colour))
    named: list[tuple[int, float]] = []
    for _, layer, at, colour in sorted(found, reverse=True):
        low, high = axes.get_xlim()
        if any(abs(at - y) < _ROOM * extent and abs(layer - x) < (high - low) / 2 for x, y in named):
            continue
        named.append((layer, at))
        left = layer > (low + high) / 2
        axes.annotate(f"layer {layer}", (layer, at), xytext=(-5 if left else 5, 0), textcoords="offset points",
                      ha="right" if left else "left", va="center", fontsize=7.5, color=colour)  # fmt: skip


def _by_layer(records: Sequence[ModuleRecord], name: str) -> dict[int, list[float]]:
    """Collect the values of each layer, in the order of the layers."""
    by_layer: dict[int, list[float]] = defaultdict(list)
    for r in sorted(records, key=lambda r: r.layer or 0):
        if (v := value(r, name)) is not None:
            by_layer[r.layer or 0].append(v)
    return by_layer


def _running(values: Sequence[float]) -> list[float]:
    half = _half_window(len(values))
    return [median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _half_window(n: int) -> int:
    return max(2, n // 12)


def _nulls(axes: Axes, groups: Groups, name: str) -> None:
    """Draw the score of noise of each role's shape, once for roles that share it."""
    shared: dict[tuple[tuple[int, float], ...], list[str]] = defaultdict(list)
    for label, records in groups.items():
        levels = {r.layer or 0: v for r in records if (v := null(r, name)) is not None}
        if levels:
            shared[tuple(sorted(levels.items()))].append(label)
    for dashes, (levels, labels) in zip(_NULL_DASHES * len(shared), shared.items(), strict=False):
        colour = palette().null if len(labels) > 1 else palette().roles[stored_role(groups[labels[0]][0].role)].colour
        x, y = [layer for layer, _ in levels], [v for _, v in levels]
        at = f" {y[0]:.2f}" if max(y) - min(y) < 0.005 else ""
        axes.plot(
            [x[0] - 0.4, *x, x[-1] + 0.4],
            [y[0], *y, y[-1]],
            color=colour,
            linestyle=dashes,
            linewidth=1.2,
            label=f"random{at}: {' '.join(dict.fromkeys(groups[label][0].role for label in labels))}",
        )


def _by_role(records: Sequence[ModuleRecord]) -> dict[str, list[ModuleRecord]]:
    groups: dict[str, list[ModuleRecord]] = defaultdict(list)
    for r in records:
        groups[role_label(r)].append(r)
    return groups


def _title(records: Sequence[ModuleRecord], name: str, noise: float | None) -> str:
    """Name the roles of the heaviest and the lightest tails, where roles may be compared."""
    if noise is None:
        return f"{name} by layer and role: compare each role with random matrices of its shape"
    medians = {
        role: median(v for r in group if (v := value(r, name)) is not None) for role, group in _by_role(records).items()
    }
    heaviest, lightest = min(medians, key=lambda role: medians[role]), max(medians, key=lambda role: medians[role])
    ends = f"heaviest tails in {heaviest} ({medians[heaviest]:.2f})"
    if lightest != heaviest:
        ends += f", lightest in {lightest} ({medians[lightest]:.2f})"
    return f"{name} by layer and role: {ends}; random matrices score {noise:.2f}"


def _notes(records: Sequence[ModuleRecord]) -> tuple[str, ...]:
    """Say what lines and bands are where they are not the values themselves."""
    places = {(r.component, r.layer, role_label(r)) for r in records if r.layer is not None}
    depth = len({layer for _, layer, _ in places})
    several = "lines: medians of the matrices of a role in a layer, bands: their middle half"
    many = f"lines: running medians of {2 * _half_window(depth) + 1} layers, dots: the layers"
    return (*((several,) if places and len(places) < len(records) else ()), *((many,) if depth > _EXACT_UP_TO else ()))
