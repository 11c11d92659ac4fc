"""How a number stands in a table, on a page or in a terminal."""

from __future__ import annotations

NOTHING = "·"
"""Where there is no value."""


def number(value: float | int | None, digits: int = 2) -> str:
    """A number for a person; a dot where there is none."""
    if value is None:
        return NOTHING
    text = str(value) if isinstance(value, int) else f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
