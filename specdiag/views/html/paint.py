"""Cells in the colours of both schemes of a page: CSS variables, of which style.css takes the reader's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdiag.views.figures.cell_colours import CellColours, cell_colours
from specdiag.views.figures.palette import style

_VARIABLE = "--"


class Paint(NamedTuple):
    """The colours of one metric, on light pages and on dark ones."""

    light: CellColours
    dark: CellColours

    @property
    def null(self) -> float | None:
        """The value of noise, in the middle of the scale."""
        return self.light.null

    @property
    def low(self) -> float:
        """The value of the first colour."""
        return self.light.low

    @property
    def high(self) -> float:
        """The value of the last colour."""
        return self.light.high

    def cell(self, value: float) -> str:
        """Give the variables of a cell: its background and its text in both schemes."""
        return variables(
            *(colour for look in (self.light, self.dark) for colour in (look.background(value), look.ink(value)))
        )

    def scale(self) -> str:
        """Give the variables of the scale from low to high."""
        light, dark = (f"linear-gradient(90deg, {look.gradient()})" for look in (self.light, self.dark))
        return variables(light, "inherit", dark, "inherit")


def paint(values: Sequence[float], null: float | None) -> Paint:
    """Choose the colours for some values in both schemes.

    Args:
        values: at least one, finite.
        null: value of noise; None for a scale from low to high.
    """
    light = cell_colours(values, null)
    with style("dark"):
        return Paint(light, cell_colours(values, null))


def variables(paper: str, ink: str, dark_paper: str, dark_ink: str) -> str:
    """Write backgrounds and text colours as the variables that style.css reads.

    Args:
        paper: background on a light page.
        ink: text on it.
        dark_paper: background on a dark page.
        dark_ink: text on it.
    """
    values = {"c": paper, "i": ink, "d": dark_paper, "j": dark_ink}
    return ";".join(f"{_VARIABLE}{name}:{value}" for name, value in values.items())
