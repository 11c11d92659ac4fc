"""Heads of attention by layer, as colours: QK and OV."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from specdiag.errors import UsageError
from specdiag.report import SpectralReport
from specdiag.text.words import words
from specdiag.views.figures.axes import layer_axis, log_axis
from specdiag.views.figures.cell_colours import CellColours, cell_colours
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import check_report, value
from specdiag.views.figures.style import ReportFigure, new_figure, plain, report_caption, styled
from specdiag.views.head_map import MEANINGS, HeadPanel, best_metric, head_null, head_panels

_NUMBERS_UP_TO = 12
"""Number of layers, and of heads, beyond which numbers in the cells would meet."""


@styled
def heads(report: SpectralReport, *, metric: str | None = None) -> ReportFigure:
    """Draw a cell a layer and head, of QK and of OV; a grey cross where a head has no value.

    The value of products of random matrices has the colour of the page. Lines part the groups of heads that share keys
    and values.

    Args:
        report: from `analyze(function=True)` or `load_report`.
        metric: any numeric column; None for rho, or stable_rank where heads are too short for an exponent.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: the report has no heads, or none of them has the metric.
    """
    check_report(report)
    panels = head_panels(report)
    if not panels:
        raise UsageError(
            f"{report.source} has no rows of heads: make it with 'specdiag analyze --function' or function=True"
        )
    metric = best_metric(panels) if metric is None else metric
    values = _values(panels, metric)
    if not values:
        raise UsageError(f"{report.source}: no head has a value of {metric}; choose from {', '.join(MEANINGS)}")
    n_layers = max(len(panel.layers) for panel in panels)
    height = max(0.05, min(0.3, 5.0 / max(panel.n_heads for panel in panels)))
    sizes = [max(0.9, height * panel.n_heads) for panel in panels]
    width = float(np.clip(0.42 * n_layers + 2.4, 6.4, 13))
    noise = head_null(panels, metric)
    found = [v for v, _ in values]
    note = () if all(p.group in (None, 1) for p in panels) else ("lines part groups that share keys and values",)
    n_without = sum(value(row, metric) is None for panel in panels for row in panel.rows.values())
    note += (f"crosses: {n_without} heads without {words(metric)}",) if n_without else ()
    figure = new_figure(
        width,
        sum(sizes) + 0.55 * len(panels) + 1.2,
        _title(values, metric, noise),
        report_caption(report, notes=note),
    )
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=sizes)[:, 0]
    colours = cell_colours(found, noise)
    numbers = n_layers <= _NUMBERS_UP_TO and max(p.n_heads for p in panels) <= _NUMBERS_UP_TO
    for axes, panel in zip(grid, panels, strict=True):
        _cells(axes, panel, metric, colours, numbers=numbers)
    bar = figure.colorbar(grid[0].collections[0], ax=list(grid), aspect=25, pad=0.02)
    if isinstance(colours.norm, LogNorm):
        log_axis(bar.ax.yaxis, min(found), max(found), 6)
    if colours.null is not None:
        bar.ax.set_ylim(min(*found, colours.null), max(*found, colours.null))
        bar.ax.axhline(colours.null, color=palette().ink, linewidth=1.5)
    bar.set_label(MEANINGS.get(metric, metric))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - the stub takes the outline for a method
    return figure


def _values(panels: Sequence[HeadPanel], metric: str) -> list[tuple[float, str]]:
    return [
        (v, f"{panel.title} layer {layer} head {head}")
        for panel in panels
        for (head, layer), row in panel.rows.items()
        if (v := value(row, metric)) is not None and np.isfinite(v)
    ]


def _title(values: Sequence[tuple[float, str]], metric: str, noise: float | None) -> str:
    (low, least), (high, most) = min(values), max(values)
    title = f"{words(metric)} by layer and head: {low:.2f} ({least}) to {high:.2f} ({most})"
    return title if noise is None else f"{title}; random products score {noise:.2f}"


def _cells(axes: Axes, panel: HeadPanel, metric: str, colours: CellColours, *, numbers: bool) -> None:
    first = panel.layers[0]
    table = np.full((panel.n_heads, len(panel.layers)), np.nan)
    for (head, layer), row in panel.rows.items():
        v = value(row, metric)
        if v is not None:
            table[head, layer - first] = v
    axes.pcolormesh(np.arange(first, first + len(panel.layers) + 1) - 0.5, np.arange(panel.n_heads + 1) - 0.5, table,
                    norm=colours.norm, cmap=colours.map, edgecolor=palette().paper, linewidth=0.3)  # fmt: skip
    gaps = np.argwhere(np.isnan(table))
    axes.plot(gaps[:, 1] + first, gaps[:, 0], "x", color=palette().faint, markersize=3, linestyle="none")
    if panel.group is not None and 1 < panel.group < panel.n_heads:
        for edge in range(panel.group, panel.n_heads, panel.group):
            axes.axhline(edge - 0.5, color=palette().ink, linewidth=0.6)
    axes.set_ylim(panel.n_heads - 0.5, -0.5)
    step = max(1, -(-panel.n_heads // 12))
    axes.set_yticks(range(0, panel.n_heads, step))
    axes.set_ylabel("head")
    axes.tick_params(length=0)
    axes.set_title(plain(panel.title))
    for side in axes.spines.values():
        side.set_visible(False)
    layer_axis(axes.xaxis, panel.layers, 20)
    for (head, layer), v in np.ndenumerate(table) if numbers else ():
        if np.isfinite(v):
            axes.text(layer + first, head, f"{v:.2f}" if abs(v) < 10 else f"{v:.0f}", ha="center", va="center",
                      fontsize=7, color=colours.ink(float(v)))  # fmt: skip
