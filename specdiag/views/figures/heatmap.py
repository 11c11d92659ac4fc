"""Any metric by layer and role, as colours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import layer_axis, log_axis
from specdiag.views.figures.selection import check_report, choose, in_role_order, value, with_values
from specdiag.views.figures.style import INK, LAYERS, ReportFigure, new_figure, plain, report_caption, styled

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
    chosen = [r for r in in_role_order(choose(report, include, layers, roles)) if r.layer is not None]
    values = [v for r in chosen if (v := value(r, metric)) is not None]
    if not values:
        raise UsageError(f"{report.source}: no matrix that was asked for has a layer and {metric}")
    parts: dict[str | None, list[ModuleRecord]] = defaultdict(list)
    for r in chosen:
        parts[r.component].append(r)
    n_layers = max(r.layer or 0 for r in chosen) - min(r.layer or 0 for r in chosen) + 1
    n_rows = [len({role_label(r) for r in part}) for part in parts.values()]
    cell = 0.62 if n_layers <= _NUMBERS_UP_TO else max(0.12, 10.5 / n_layers)
    caption = report_caption(report, notes=_notes(chosen))
    width = float(np.clip(cell * n_layers + 2.2, 5.4, 13))
    figure = new_figure(width, 0.36 * sum(n_rows) + 0.6 * len(parts) + 1.1, f"{metric} by layer and role", caption)
    grid = figure.subplots(len(parts), 1, squeeze=False, height_ratios=n_rows)[:, 0]
    norm = _norm(values)
    for axes, (component, part) in zip(grid, parts.items(), strict=True):
        _cells(axes, part, metric, norm, numbers=n_layers <= _NUMBERS_UP_TO and width < 13)
        if component is not None:
            axes.set_title(plain(component))
    bar = figure.colorbar(grid[0].collections[0], ax=list(grid), aspect=25, pad=0.02)
    if isinstance(norm, LogNorm):
        log_axis(bar.ax.yaxis, min(values), max(values), 6)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - the stub takes the outline for a method
    return figure


def _cells(axes: Axes, records: Sequence[ModuleRecord], metric: str, norm: Normalize, *, numbers: bool) -> None:
    rows = list(dict.fromkeys(role_label(r) for r in records))
    first, last = min(r.layer or 0 for r in records), max(r.layer or 0 for r in records)
    cells = _medians(records, metric)
    table = np.full((len(rows), last - first + 1), np.nan)
    for (role, layer), v in cells.items():
        table[rows.index(role), layer - first] = v
    axes.pcolormesh(np.arange(first, last + 2) - 0.5, np.arange(len(rows) + 1) - 0.5, table, norm=norm, cmap=LAYERS,
                    edgecolor="white", linewidth=0.4)  # fmt: skip
    gaps = np.argwhere(np.isnan(table))
    axes.plot(gaps[:, 1] + first, gaps[:, 0], "x", color="#BBBBBB", markersize=4, linestyle="none")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    layer_axis(axes.xaxis, range(first, last + 1), 20)
    for (role, layer), v in cells.items() if numbers else ():
        red, green, blue, _ = colormaps[LAYERS](norm(v))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        axes.text(layer, rows.index(role), _short(v), ha="center", va="center", fontsize=7.5,
                  color=INK if light else "white")  # fmt: skip


def _medians(records: Sequence[ModuleRecord], metric: str) -> Cells:
    values_of: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in records:
        v = value(r, metric)
        if v is not None and np.isfinite(v):
            values_of[role_label(r), r.layer or 0].append(v)
    return {cell: median(values) for cell, values in values_of.items()}


def _norm(values: Sequence[float]) -> Normalize:
    low, high = min(values), max(values)
    if low > 0 and high / low > 100:
        return LogNorm(low, high)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def _notes(records: Sequence[ModuleRecord]) -> tuple[str, ...]:
    several = len(records) > len({(r.component, role_label(r), r.layer) for r in records})
    return ("cells with several matrices show their median",) if several else ()


def _short(v: float) -> str:
    """Write a number in at most five characters."""
    if v == int(v) and abs(v) < 10_000:
        return f"{v:.0f}"
    text = f"{v:.2f}" if 0.01 <= abs(v) < 100 else f"{v:.0f}" if 100 <= abs(v) < 10_000 else f"{v:.0e}"
    return text.replace("e-0", "e-").replace("e+0", "e")
