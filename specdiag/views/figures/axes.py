"""Panels and ticks. Ticks cost more to draw than curves, and labels must not meet: few are placed, by rule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import FigureBase
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

_ALL_TICKS_UP_TO = 9
"""Number of panels beyond which only those in the lowest row have ticks below."""


class Panel(NamedTuple):
    """A panel among several small ones, and whether there is none at its left and none below it."""

    axes: Axes
    left: bool
    bottom: bool


def panels(figure: FigureBase, n: int, columns: int, skipped: Collection[int] = ()) -> list[Panel]:
    """Add axes in rows to a figure.

    Args:
        figure: an empty figure, or a part of one.
        n: number of places.
        columns: places in a row; the last row may have fewer.
        skipped: places that stay empty, counted from 0.
    """
    columns = min(columns, n)
    rows = -(-n // columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    kept = [i for i in range(n) if i not in skipped]
    for i in set(range(rows * columns)) - set(kept):
        grid.flat[i].remove()
    lowest = {i % columns: i for i in kept}
    return [Panel(grid.flat[i], i % columns == 0, lowest[i % columns] == i) for i in kept]


def hide_inner(panels: Sequence[Panel]) -> None:
    """Leave out the ticks that panels share with their neighbours.

    Ticks of the left axis stay at the left alone. Those below stay everywhere, but for many panels.

    Args:
        panels: of one figure.
    """
    for panel in panels:
        panel.axes.xaxis.set_visible(panel.bottom or len(panels) <= _ALL_TICKS_UP_TO)
        panel.axes.yaxis.set_visible(panel.left)


def log_axis(axis: Axis, low: float, high: float, most: int) -> None:
    """Make an axis logarithmic, with few ticks.

    Args:
        axis: the axis.
        low: its lower end, above 0.
        high: its upper end.
        most: the largest number of labelled ticks; where round numbers allow it there are at least three.
    """
    horizontal = isinstance(axis, XAxis)
    (axis.axes.set_xscale if horizontal else axis.axes.set_yscale)("log")
    (axis.axes.set_xlim if horizontal else axis.axes.set_ylim)(low, high)
    ticks = log_ticks(low, high, most)
    _fix(axis, ticks)
    written = all(0.0009 < tick < 10_001 for tick in ticks)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if written else _power(value)))


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Choose round numbers on a logarithmic axis.

    They are decades, every second or third one, or steps of 1-2-5 where decades are too few.

    Args:
        low: lower end of the axis, above 0.
        high: its upper end.
        most: the largest number of ticks.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= min(3, most):
            stride = -(-len(ticks) // most)
            return ticks[::stride]
    return [float(f"{low:.2g}"), float(f"{high:.2g}")]


def layer_axis(axis: Axis, layers: Iterable[int], most: int, *, label: bool = True) -> None:
    """Put ticks at whole layers.

    Args:
        axis: the axis.
        layers: those on it.
        most: the largest number of ticks.
        label: write "layer" beside it.
    """
    _fix(axis, layer_ticks(layers, most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    if label:
        axis.set_label_text("layer")


def layer_ticks(layers: Iterable[int], most: int) -> list[float]:
    """Choose the layers to label: all of them, or every 2nd, 5th, 10th, ...

    Args:
        layers: those on the axis, at least one.
        most: the largest number of labels.
    """
    numbers = sorted(set(layers))
    step = next(
        s * 10**e for e in range(9) for s in (1, 2, 5) if len([x for x in numbers if x % (s * 10**e) == 0]) <= most
    )
    return [float(x) for x in numbers if x % step == 0] or [float(numbers[0])]


def log_bins(eigenvalues: Sequence[np.ndarray], low: float, high: float) -> np.ndarray:
    """Choose the edges of logarithmic bins, finer where there are more eigenvalues.

    Args:
        eigenvalues: of the spectra that share the bins.
        low: the first edge.
        high: the last edge.
    """
    n = max(len(values) for values in eigenvalues)
    return np.geomspace(low, high, int(np.clip(1.6 * n**0.5, 14, 60)) + 1)


def _fix(axis: Axis, ticks: list[float]) -> None:
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    return rf"$10^{{{exponent}}}$" if abs(mantissa - 1) < 1e-6 else rf"${mantissa:g}\cdot10^{{{exponent}}}$"
