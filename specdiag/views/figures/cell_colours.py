"""Colours of a metric in cells: away from noise in both directions where noise has one value, else from low to high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize, to_hex

from specdiag.views.figures.style import AROUND_NULL, INK, LAYERS

_DECADES = 100
_STOPS = 9
_LEAST_SPAN = 0.05
"""Smallest distance from noise that gets the full colour."""


class CellColours(NamedTuple):
    """Colours for the values of a metric.

    Attributes:
        norm: from values to [0, 1].
        map_name: of matplotlib's colour map.
        null: value of noise, in the middle of the map; None where noise has no one value.
    """

    norm: Normalize
    map_name: str
    null: float | None

    def background(self, value: float) -> str:
        """Give the colour of a value, as `#rrggbb`."""
        return to_hex(colormaps[self.map_name](self.norm(value)))

    def ink(self, value: float) -> str:
        """Give the colour of text on it, dark or white."""
        red, green, blue, _ = colormaps[self.map_name](self.norm(value))
        return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#FFFFFF"

    def gradient(self) -> str:
        """Give the stops of the map from low to high, for CSS."""
        return ", ".join(to_hex(colormaps[self.map_name](i / (_STOPS - 1))) for i in range(_STOPS))

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
        null: value of noise, white in the middle; None for a scale from low to high, logarithmic over two decades.
    """
    low, high = min(values), max(values)
    if null is not None:
        span = max(null - low, high - null, _LEAST_SPAN)
        return CellColours(Normalize(null - span, null + span), AROUND_NULL, null)
    if low > 0 and high / low > _DECADES:
        return CellColours(LogNorm(low, high), LAYERS, None)
    return CellColours(Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5), LAYERS, None)
