"""Layers by roles as coloured cells, each a link to the spectrum behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from specdiag.records import ModuleRecord, Status
from specdiag.views.cells import role_label
from specdiag.views.figures.cell_colours import CellColours, cell_colours
from specdiag.views.figures.selection import common_null, in_role_order, value

_LOST: dict[Status, str] = {"nonfinite": "not finite", "failed": "failed", "zero": "zeros"}
"""Statuses of a broken matrix, in words."""
_NUMBERS_UP_TO = 16
"""Number of layers beyond which numbers would make the cells wider than a screen."""


class Cell(NamedTuple):
    """A role of one layer."""

    record: str
    """Name of the first of its matrices."""
    about: str
    text: str
    background: str
    ink: str


class Row(NamedTuple):
    """A role; a cell a layer, None where there is no value."""

    label: str
    cells: list[Cell | None]


class Heatmap(NamedTuple):
    """A metric by layer and role."""

    metric: str
    layers: list[int]
    rows: list[Row]
    elsewhere: list[Cell]
    """Cells of matrices outside of the layers."""
    colours: CellColours
    several: bool
    """True if cells hold medians of several matrices."""
    wide: bool
    """Too many layers for numbers in the cells."""


def heatmap(records: Sequence[ModuleRecord]) -> Heatmap | None:
    """Arrange square_alpha, or alpha where no matrix has it, by layer and role.

    Args:
        records: rows of a report.

    Returns:
        None where no matrix has either metric.
    """
    metric = next((m for m in ("square_alpha", "alpha") if any(value(r, m) is not None for r in records)), None)
    if metric is None:
        return None
    groups: dict[tuple[str, int | None], list[ModuleRecord]] = defaultdict(list)
    lost: dict[tuple[str, int | None], ModuleRecord] = {}
    for r in in_role_order(records):
        if value(r, metric) is not None:
            groups[_label(r), r.layer].append(r)
        elif r.status in _LOST:
            lost.setdefault((_label(r), r.layer), r)
    numbers = [layer for _, layer in (*groups, *lost) if layer is not None]
    layers = list(range(min(numbers), max(numbers) + 1)) if numbers else []
    colours = cell_colours([_median(group, metric) for group in groups.values()], common_null(records, metric))
    wide = len(layers) > _NUMBERS_UP_TO
    cells = {place: _without_value(place, r, wide=wide) for place, r in lost.items()}
    cells |= {place: _cell(place, group, metric, colours, wide=wide) for place, group in groups.items()}
    return Heatmap(
        metric=metric,
        layers=layers,
        rows=[Row(label, [cells.get((label, layer)) for layer in layers]) for label in _labels(cells)],
        elsewhere=[
            _cell((r.key, None), [r], metric, colours, wide=False)._replace(text=f"{r.key} {_short(value(r, metric))}")
            for (_, layer), group in groups.items()
            for r in (group if layer is None else ())
        ]
        + [_without_value(place, r, wide=False, name=f"{r.key} ") for place, r in lost.items() if place[1] is None],
        colours=colours,
        several=any(len(group) > 1 for (_, layer), group in groups.items() if layer is not None),
        wide=wide,
    )


def _label(record: ModuleRecord) -> str:
    return role_label(record) if record.component is None else f"{record.component} {role_label(record)}"


def _labels(cells: Mapping[tuple[str, int | None], Cell]) -> list[str]:
    return list(dict.fromkeys(label for label, layer in cells if layer is not None))


def _cell(
    place: tuple[str, int | None], group: Sequence[ModuleRecord], metric: str, colours: CellColours, *, wide: bool
) -> Cell:
    v = _median(group, metric)
    label, layer = place
    title = label if layer is None else f"{label}, layer {layer}"
    count_note = f" (median of {len(group)})" if len(group) > 1 else ""
    text = "" if wide else _short(v)
    return Cell(
        group[0].key,
        f"{title}: {metric} {v:.3f}{count_note}",
        text,
        colours.background(v),
        colours.ink(v),
    )


def _without_value(place: tuple[str, int | None], r: ModuleRecord, *, wide: bool, name: str = "") -> Cell:
    """Make the cell of a broken matrix, which has no number."""
    label, layer = place
    title = label if layer is None else f"{label}, layer {layer}"
    text = f"{name}{'x' if wide else _LOST[r.status]}"
    return Cell(r.key, f"{title}: {_LOST[r.status]}", text, "var(--fail)", "var(--paper)")


def _median(group: Sequence[ModuleRecord], metric: str) -> float:
    return median(v for r in group if (v := value(r, metric)) is not None)


def _short(v: float | None) -> str:
    return "" if v is None else f"{v:.2f}" if abs(v) < 100 else f"{v:.0f}"
