"""Values from the files of a run, checked, and where each came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from specdiag.errors import SourceError

_MOST_STEPS = 10**15


class FoundSettings:
    """Settings from several files. The first file that has a setting decides it.

    Attributes:
        values: settings by name.
        origin: name of the file that each came from.
        notes: sentences about what was not read.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.notes: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.values or self.notes)

    def add(self, name: str, value: float | None, file: Path) -> None:
        """Add a setting, unless it is None or known already.

        Args:
            name: field of `RunSettings`.
            value: number or truth value from the file.
            file: the file.
        """
        if value is not None and name not in self.values:
            self.values[name] = value
            self.origin[name] = file.name


def mapping(content: object, path: Path) -> Mapping[object, object]:
    """Return content that must be a dictionary.

    Args:
        content: what was read.
        path: its file, for the message.

    Raises:
        SourceError: it is something else.
    """
    if not isinstance(content, Mapping):
        raise SourceError(f"'{path}' holds a {type(content).__name__} where a dictionary belongs: copy it again")
    return cast("Mapping[object, object]", content)


def number(value: object, path: Path) -> float:
    """Return a decay or an lr as a float; torch may keep it in a tensor of one element.

    Args:
        value: what was read.
        path: its file, for the message.

    Raises:
        SourceError: it is no number, negative, or not finite.
    """
    item = getattr(value, "item", None)  # a capturable optimizer has its lr in a tensor
    if item is not None and getattr(value, "numel", lambda: 1)() == 1:
        value = item()
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= float(value) < math.inf:
            return float(value)
    except OverflowError:  # an integer of 400 digits
        pass
    raise SourceError(f"'{path}' has {_shown(value)} for a decay or an lr: give weight_decay= and lr= instead")


def optional_number(value: object, path: Path) -> float | None:
    """Return a decay or an lr as `number` does; None for None.

    Args:
        value: what was read.
        path: its file, for the message.

    Raises:
        SourceError: it is no number, negative, or not finite.
    """
    return None if value is None else number(value, path)


def largest(values: Iterable[float]) -> float | None:
    """Return the largest value; None if there is none."""
    return max(values, default=None)


def steps(value: object) -> int | None:
    """Return a number of steps; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_STEPS else None


def step_count(content: Mapping[object, object], name: str, path: Path) -> int | None:
    """Return a number of steps from a dictionary; None if it is missing, or -1 for not set.

    Args:
        content: the dictionary.
        name: key of the number.
        path: its file, for the message.

    Raises:
        SourceError: the value is no number of steps.
    """
    value = content.get(name)
    if value is not None and value != -1 and steps(value) is None:
        raise SourceError(f"'{path}' has {_shown(value)} for {name}, not a number of steps: give steps_left= instead")
    return steps(value)


def _shown(value: object) -> str:
    """Return the value in few characters."""
    try:
        return f"{value!r:.40}"
    except ValueError:  # Python writes no integer of 5,000 digits
        return "a huge number"
