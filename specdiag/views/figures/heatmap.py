"""Any metric by layer and role, as colours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.text.words import words
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import layer_axis, log_axis
from specdiag.views.figures.cell_colours import CellColours, cell_colours
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import check_report, choose, common_null, in_role_order, value, with_values
from specdiag.views.figures.style import ReportFigure, new_figure, plain, report_caption, styled
from specdiag.views.head_map import MEANINGS

Cells = Mapping[tuple[str, int], float]
_NUMBERS_UP_TO = 16
"""Number of layers beyond which numbers in the cells would meet."""


@styled
def heatmap(
    report: SpectralReport,
    *,
    metric: str | None = None,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
) -> ReportFigure:
    """Draw a cell a layer and role: the median where a cell has several matrices, a grey cross where none has a value.

    Embeddings stand before the first layer, the head and what else is outside of the layers after the last one. Where
    noise scores the same in all shapes, as in square_alpha, its value has the colour of the page.

    Args:
        report: from `analyze` or `load_report`.
        metric: any numeric column; None for square_alpha, which may be compared across roles, or else alpha.
        include: globs on names; only these.
        layers: only these.
        roles: only these.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in the report.
    """
    check_report(report)
    square = any(r.square_alpha is not None for r in report)
    default = "square_alpha" if square else "alpha"
    metric = with_values(report, default if metric is None else metric)
    requested = in_role_order(choose(report, include, layers, roles))
    stacks = {r.component for r in requested if r.layer is not None}
    chosen = [r for r in requested if r.component in stacks]
    medians = _named_medians(chosen, metric)
    if not medians:
        raise UsageError(f"{report.source}: no matrix that was asked for has a layer and {metric}")
    parts: dict[str | None, list[ModuleRecord]] = defaultdict(list)
    for r in chosen:
        parts[r.component].append(r)
    n_layers = len(_span(chosen)) + len({r.role == "embed" for r in chosen if r.layer is None})
    n_rows = [len({role_label(r) for r in part}) for part in parts.values()]
    cell = 0.62 if n_layers <= _NUMBERS_UP_TO else max(0.12, 10.5 / n_layers)
    caption = report_caption(report, notes=_notes(chosen, metric, len(requested) - len(chosen)))
    width = float(np.clip(cell * n_layers + 2.2, 6.4, 13))
    noise, values = common_null(chosen, metric), list(medians.values())
    title = _title(medians, metric, noise)
    figure = new_figure(width, 0.36 * sum(n_rows) + 0.6 * len(parts) + 1.1, title, caption)
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=n_rows)[:, 0]
    colours = cell_colours(values, noise)
    for axes, (component, part) in zip(grid, parts.items(), strict=True):
        _cells(axes, part, metric, colours, numbers=n_layers <= _NUMBERS_UP_TO and width < 13)
        if component is not None:
            axes.set_title(plain(component))
    bar = figure.colorbar(grid[0].collections[0], ax=list(grid), aspect=25, pad=0.02)
    if isinstance(colours.norm, LogNorm):
        log_axis(bar.ax.yaxis, min(values), max(values), 6)
    if colours.null is not None:
        bar.ax.set_ylim(min(*values, colours.null), max(*values, colours.null))
        bar.ax.axhline(colours.null, color=palette().ink, linewidth=1.5)
    bar.set_label("lower: heavier tail" if colours.null is not None else MEANINGS.get(metric, ""))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - the stub takes the outline for a method
    return figure


def _cells(axes: Axes, records: Sequence[ModuleRecord], metric: str, colours: CellColours, *, numbers: bool) -> None:
    rows = list(dict.fromkeys(role_label(r) for r in records))
    layers, cells = _span(records), _medians(records, metric)
    first, last = (f(column for _, column in [*cells, ("", layers[0]), ("", layers[-1])]) for f in (min, max))
    table = np.full((len(rows), last - first + 1), np.nan)
    for (role, column), v in cells.items():
        table[rows.index(role), column - first] = v
    axes.pcolormesh(np.arange(first, last + 2) - 0.5, np.arange(len(rows) + 1) - 0.5, table, norm=colours.norm,
                    cmap=colours.map, edgecolor=palette().paper, linewidth=0.4)  # fmt: skip
    repeated = {role_label(r) for r in records if r.layer is not None}
    gaps = [(c, rows.index(role)) for role in repeated for c in layers if np.isnan(table[rows.index(role), c - first])]
    axes.plot(
        *zip(*gaps, strict=True) if gaps else ((), ()), "x", color=palette().faint, markersize=4, linestyle="none"
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    layer_axis(axes.xaxis, layers, 20)
    ends = {first: "in", last: "out"}
    for column, word in ends.items():
        if column not in layers:
            axes.text(column, -0.62, word, ha="center", va="bottom", fontsize=7.5)
    for (role, column), v in cells.items() if numbers else ():
        axes.text(column, rows.index(role), _short(v), ha="center", va="center", fontsize=7.5,
                  color=colours.ink(v))  # fmt: skip


def _title(medians: Mapping[str, float], metric: str, noise: float | None) -> str:
    """Name the cells at both ends of the scale."""
    low, high = (f(medians, key=lambda name: medians[name]) for f in (min, max))
    title = f"{words(metric)} by layer and role: {_short(medians[low])} ({low}) to {_short(medians[high])} ({high})"
    return title if noise is None else f"{title}; random matrices score {noise:.2f}"


def _named_medians(records: Sequence[ModuleRecord], metric: str) -> dict[str, float]:
    """Compute the value of each cell, by its name."""
    cells: dict[str, list[float]] = defaultdict(list)
    for r in records:
        if (v := value(r, metric)) is not None and np.isfinite(v):
            layer = "" if r.layer is None else f"layer {r.layer}"
            cells[" ".join(filter(None, (r.component, layer, role_label(r))))].append(v)
    return {name: median(values) for name, values in cells.items()}


def _span(records: Sequence[ModuleRecord]) -> range:
    layers = [r.layer for r in records if r.layer is not None]
    return range(min(layers), max(layers) + 1)


def _medians(records: Sequence[ModuleRecord], metric: str) -> Cells:
    layers = _span(records)
    values_of: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in records:
        v = value(r, metric)
        if v is not None and np.isfinite(v):
            outside = layers[0] - 1 if r.role == "embed" else layers[-1] + 1
            values_of[role_label(r), outside if r.layer is None else r.layer].append(v)
    return {cell: median(values) for cell, values in values_of.items()}


def _notes(records: Sequence[ModuleRecord], metric: str, n_left_out: int) -> tuple[str, ...]:
    several = len(records) > len({(r.component, role_label(r), r.layer) for r in records})
    notes = ["cells with several matrices show their median"] if several else []
    layered = [(value(r, metric), (r.component, role_label(r), r.layer)) for r in records if r.layer is not None]
    if {place for _, place in layered} - {place for v, place in layered if v is not None}:
        notes.append(f"crosses: no {words(metric)}")
    if n_left_out:
        notes.append(f"{n_left_out} matrices of parts without layers are not shown")
    return tuple(notes)


def _short(v: float) -> str:
    """Write a number in at most five characters."""
    if v == int(v) and abs(v) < 10_000:
        return f"{v:.0f}"
    text = (
        f"{v:.2f}"
        if 0.01 <= abs(v) < 10
        else f"{v:.1f}"
        if 10 <= abs(v) < 100
        else f"{v:.0f}"
        if 100 <= abs(v) < 10_000
        else f"{v:.0e}"
    )
    return text.replace("e-0", "e-").replace("e+0", "e")
