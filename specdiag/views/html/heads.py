"""Heads by layer as coloured cells of a page."""

from __future__ import annotations

from typing import NamedTuple

from specdiag.report import SpectralReport
from specdiag.views.figures.selection import value
from specdiag.views.head_map import MEANINGS, HeadPanel, best_metric, head_null, head_panels
from specdiag.views.html.paint import Paint, paint


class HeadCell(NamedTuple):
    """A head of one layer."""

    about: str
    style: str
    """Its colours, as CSS."""


class HeadRow(NamedTuple):
    """A head; a cell a layer, None where there is no value."""

    head: int
    ends_group: bool
    cells: list[HeadCell | None]


class HeadTable(NamedTuple):
    """QK or OV of one piece of the model."""

    title: str
    layers: range
    rows: list[HeadRow]


class HeadMap(NamedTuple):
    """A metric of all heads."""

    metric: str
    meaning: str
    colours: Paint
    tables: list[HeadTable]


def head_map(report: SpectralReport) -> HeadMap | None:
    """Arrange rho, or stable_rank of short heads, by head and layer.

    Args:
        report: of any model.

    Returns:
        None without rows of heads that have a value.
    """
    panels = head_panels(report)
    if not panels:
        return None
    metric = best_metric(panels)
    values = [v for panel in panels for row in panel.rows.values() if (v := value(row, metric)) is not None]
    if not values:
        return None
    colours = paint(values, head_null(panels, metric))
    tables = [HeadTable(panel.title, panel.layers, _rows(panel, metric, colours)) for panel in panels]
    return HeadMap(metric, MEANINGS[metric], colours, tables)


def _rows(panel: HeadPanel, metric: str, colours: Paint) -> list[HeadRow]:
    def cell(head: int, layer: int) -> HeadCell | None:
        row = panel.rows.get((head, layer))
        v = None if row is None else value(row, metric)
        if v is None:
            return None
        return HeadCell(f"{panel.title}, layer {layer}, head {head}: {metric} {v:.3f}", colours.cell(v))

    group, n = panel.group or 1, panel.n_heads
    return [
        HeadRow(head, group > 1 and head + 1 < n and (head + 1) % group == 0, [cell(head, x) for x in panel.layers])
        for head in range(n)
    ]
