"""The state of a config.json that gave nothing: damaged, or absent or empty."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DAMAGED = re.compile(r"Went on without a configuration: (.*)\.", re.DOTALL)
"""The note of a reader that could not read config.json."""


def damage(notes: Iterable[str]) -> str | None:
    """Find what is wrong with a config.json that could not be read; None where there is none, or it was read.

    Args:
        notes: of a report or checkpoint.
    """
    return next((match[1] for note in notes if (match := _DAMAGED.fullmatch(note))), None)


def without_config(name: str, notes: Iterable[str]) -> str:
    """Say why a configuration gave nothing.

    Args:
        name: of its file.
        notes: of the report or checkpoint.
    """
    return f"{name} is {'absent or empty' if damage(notes) is None else 'damaged'}"
