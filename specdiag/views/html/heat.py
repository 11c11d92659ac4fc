"""Layers by roles as coloured cells, each a link to the spectrum behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from specdiag.records import ModuleRecord, Status
from specdiag.views.cells import role_label
from specdiag.views.figures.selection import common_null, in_role_order, value
from specdiag.views.html.paint import Paint, paint, variables

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
    style: str
    """Its colours, as CSS."""


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
    colours: Paint
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
        elif r.status in _LOST or r.layer is not None:
            lost.setdefault((_label(r), r.layer), r)
    numbers = [layer for _, layer in (*groups, *lost) if layer is not None]
    layers = list(range(min(numbers), max(numbers) + 1)) if numbers else []
    colours = paint([_median(group, metric) for group in groups.values()], common_null(records, metric))
    wide = len(layers) > _NUMBERS_UP_TO
    cells = {place: _without_value(place, r, metric, wide=wide) for place, r in lost.items()}
    cells |= {place: _cell(place, group, metric, colours, wide=wide) for place, group in groups.items()}
    return Heatmap(
        metric=metric,
        layers=layers,
        rows=[Row(label, [cells.get((label, layer)) for layer in layers]) for label in _labels(records)],
        elsewhere=[
            _cell((r.key, None), [r], metric, colours, wide=False)._replace(text=f"{r.key} {_short(value(r, metric))}")
            for (_, layer), group in groups.items()
            for r in (group if layer is None else ())
        ]
        + [
            _without_value(place, r, metric, wide=False, name=f"{r.key} ")
            for place, r in lost.items()
            if place[1] is None
        ],
        colours=colours,
        several=any(len(group) > 1 for (_, layer), group in groups.items() if layer is not None),
        wide=wide,
    )


def _label(record: ModuleRecord) -> str:
    return role_label(record) if record.component is None else f"{record.component} {role_label(record)}"


def _labels(records: Sequence[ModuleRecord]) -> list[str]:
    return list(dict.fromkeys(_label(r) for r in in_role_order(records) if r.layer is not None))


def _cell(
    place: tuple[str, int | None], group: Sequence[ModuleRecord], metric: str, colours: Paint, *, wide: bool
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
        colours.cell(v),
    )


def _without_value(place: tuple[str, int | None], r: ModuleRecord, metric: str, *, wide: bool, name: str = "") -> Cell:
    """Make the cell of a matrix without the number: in the colour of failure where it is broken, else an outline."""
    label, layer = place
    title = label if layer is None else f"{label}, layer {layer}"
    if r.status not in _LOST:
        return Cell(r.key, f"{title}: no {metric} ({r.status})", "×", variables(*("transparent", "var(--faint)") * 2))
    text = f"{name}{'x' if wide else _LOST[r.status]}"
    return Cell(r.key, f"{title}: {_LOST[r.status]}", text, variables(*("var(--fail)", "var(--paper)") * 2))


def _median(group: Sequence[ModuleRecord], metric: str) -> float:
    return median(v for r in group if (v := value(r, metric)) is not None)


def _short(v: float | None) -> str:
    return "" if v is None else f"{v:.2f}" if abs(v) < 100 else f"{v:.0f}"
