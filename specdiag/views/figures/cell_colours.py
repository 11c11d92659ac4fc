"""Colours of a metric in cells: away from noise in both directions where noise has one value, else from low to high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.colors import Colormap, LogNorm, Normalize, to_hex

from specdiag.views.figures.palette import VALUES, ink_on, palette

_DECADES = 100
_STOPS = 9
_LEAST_SPAN = 0.3
"""Smallest distance from noise that gets the full colour."""


class CellColours(NamedTuple):
    """Colours for the values of a metric.

    Attributes:
        norm: from values to [0, 1].
        map: from these to colours.
        null: value of noise, in the middle of the map; None where noise has no one value.
    """

    norm: Normalize
    map: Colormap
    null: float | None

    def background(self, value: float) -> str:
        """Give the colour of a value, as `#rrggbb`."""
        return to_hex(self.map(self.norm(value)))

    def ink(self, value: float) -> str:
        """Give the colour of text on it, dark or white."""
        return ink_on(self.background(value))

    def gradient(self) -> str:
        """Give the stops of the map from low to high, for CSS."""
        return ", ".join(to_hex(self.map(i / (_STOPS - 1))) for i in range(_STOPS))

    @property
    def low(self) -> float:
        """The value of the first colour."""
        return float(self.norm.vmin or 0.0)

    @property
    def high(self) -> float:
        """The value of the last colour."""
        return float(self.norm.vmax or 0.0)


def cell_colours(values: Sequence[float], null: float | None) -> CellColours:
    """Choose the colours for some values.

    Args:
        values: at least one, finite.
        null: value of noise, the middle of the scale; None for a scale from low to high, logarithmic over two decades.
    """
    low, high = min(values), max(values)
    if null is not None:
        span = max(null - low, high - null, _LEAST_SPAN)
        return CellColours(Normalize(null - span, null + span), palette().around_null, null)
    if low > 0 and high / low > _DECADES:
        return CellColours(LogNorm(low, high), VALUES, None)
    return CellColours(Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5), VALUES, None)
