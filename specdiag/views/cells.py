"""Values as text, for a table on a page or in a terminal."""

from __future__ import annotations

from specdiag.records import ModuleRecord

NOTHING = "·"
"""The cell of a missing value."""


def number(value: float | int | None, digits: int = 2) -> str:
    """Write a number for a person.

    Args:
        value: None where there is none.
        digits: behind the point, for floats.

    Returns:
        The text; `NOTHING` for None, and never a negative zero.
    """
    if value is None:
        return NOTHING
    text = str(value) if isinstance(value, int) else f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def role_label(record: ModuleRecord) -> str:
    """Write the role, with `cross` for cross-attention."""
    return f"{record.role} cross" if record.cross_attention else record.role
