"""A spectrum as the paths of a small SVG: 1.5 KB, where matplotlib's would take 30."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from specdiag.views.figures.axes import log_ticks
from specdiag.views.html.spectrum import Point, Spectrum

WIDTH, HEIGHT = 320, 170
"""Sides of the area inside the axes, in the units of the SVG."""

_BELOW = HEIGHT + 5
"""Height at which a density of zero is drawn: below the area, so that the outline shows no base line."""

Scale = Callable[[float], str]


class Tick(NamedTuple):
    """A labelled place on an axis."""

    at: str
    label: str


class Chart(NamedTuple):
    """Paths and ticks, in units of the SVG."""

    density: str
    fit: str
    bulk: str
    threshold: str
    permuted: str
    randomized: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    n_left: int


def chart(drawn: Spectrum) -> Chart:
    """Draw a spectrum as paths and ticks, log-log.

    Args:
        drawn: the numbers to draw.
    """
    heights = [v for v in (*drawn.density, *drawn.randomized) if v > 0]
    laws = [y for _, y in (*(drawn.fit or ()), *drawn.bulk)]
    bottom, top = min(heights) / 1.8, max(*heights, *laws) * 1.8 if laws else max(heights) * 1.8
    x, y = _scale(drawn.low, drawn.high, 0, WIDTH), _scale(bottom, top, HEIGHT, 0)
    return Chart(
        density=_steps(drawn.density, drawn, x, y, bottom),
        fit=_line(drawn.fit or (), x, y),
        bulk=_line([p for p in drawn.bulk if p[1] > bottom], x, y),
        threshold="" if drawn.fit is None else x(drawn.fit[0][0]),
        permuted="" if drawn.permuted is None or not drawn.low < drawn.permuted < drawn.high else x(drawn.permuted),
        randomized=_steps(drawn.randomized, drawn, x, y, bottom) if drawn.randomized else "",
        x_ticks=[Tick(x(v), _label(v)) for v in log_ticks(drawn.low, drawn.high, 6)],
        y_ticks=[Tick(y(v), _label(v)) for v in log_ticks(bottom, top, 5)],
        n_left=drawn.n_left,
    )


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    """Make the function that places values on a logarithmic axis, to a tenth of a unit."""
    slope = (end - start) / math.log(high / low)
    return lambda value: f"{start + slope * math.log(value / low):.1f}".removesuffix(".0")


def _steps(density: Sequence[float], drawn: Spectrum, x: Scale, y: Scale, bottom: float) -> str:
    edges = np.geomspace(drawn.low, drawn.high, len(density) + 1)
    heights = (y(v) if v > bottom else _BELOW for v in density)
    steps = (f"V{height}H{x(edge)}" for height, edge in zip(heights, edges[1:], strict=True))
    return f"M0 {_BELOW}{''.join(steps)}V{_BELOW}Z"


def _line(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{x(a)} {y(b)}" for a, b in points) if points else ""


def _label(value: float) -> str:
    return f"{value:g}".replace("e-0", "e-").replace("e+0", "e")
