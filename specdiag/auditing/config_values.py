"""Checks of numbers in config.json with which a model loads, and runs to NaN, infinities or noise."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, cast

from msgspec import Struct

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.files import shortened, toml_decoder
from specdiag.text.printable import printable

_INERT = re.compile(r".*init(ializer)?_.*|.*_init(_\w+)?|id2label|label2id|quantization_config|task_specific_params")
"""Entries that say how fresh weights are drawn, and sections that no forward pass reads."""
_UNBOUNDED = re.compile(r"time_step_limit|max_\w+|\w+_(limit|max)")
"""Entries that may say that there is no limit: Mamba-2's default is an infinite one."""
_FLOAT, _FLOATS = "__float__", ("Infinity", "-Infinity", "NaN")
"""How transformers writes floats that JSON lacks."""
_DEEP = 16


class Limit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of config_limits.toml, which explains the fields."""

    check: Literal["config_value", "config_doubt"]
    key: str
    inside: str = r".*"
    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf
    origin: str

    def holds(self, number: float) -> bool:
        """Tell whether a number keeps within.

        Args:
            number: finite.
        """
        return number > self.above and self.least <= number <= self.most

    def words(self) -> str:
        """Write what keeps within, such as "above 0"."""
        if self.above > -math.inf:
            return f"above {self.above:g}"
        return f"from {self.least:g} to {self.most:g}"


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    limit: tuple[Limit, ...]


_decode = toml_decoder(_File)


@cache
def limits() -> tuple[Limit, ...]:
    """Read the limits as they are shipped."""
    return _decode((files("specdiag.auditing") / "config_limits.toml").read_bytes()).limit


def values(subject: Subject) -> Iterator[Observation]:
    """Find numbers that are not finite, or beyond their limits, at any depth.

    Args:
        subject: the subject of the audit.
    """
    for path, number in _numbers(subject.config, (), 0):
        name = printable(shortened(".".join(path)))
        if not math.isfinite(number):
            if math.isnan(number) or not _UNBOUNDED.fullmatch(path[-1]):
                yield Observation("config_value", None, f"{name} is {number}")
            continue
        for limit in limits():
            if not limit.holds(number) and _fits(limit, path):
                yield Observation(limit.check, None, f"{name} is {number:g}, expected {limit.words()}")
                break


def repeated(subject: Subject) -> Iterator[Observation]:
    """Find keys that config.json gives twice with different values.

    Args:
        subject: the subject of the audit.
    """
    for key, first, last in subject.repeated:
        words = " and ".join(shortened(json.dumps(value), 80) for value in (first, last))
        yield Observation("config_repeated", None, f"{printable(shortened(key))} is given as {printable(words)}")


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, with the reason.

    Args:
        subject: the subject of the audit.
    """
    if subject.config or not subject.is_checkpoint:
        return {}
    return dict.fromkeys(
        ("config_value", "config_doubt", "config_repeated"), f"{subject.config_name} is absent, empty or damaged"
    )


def _fits(limit: Limit, path: tuple[str, ...]) -> bool:
    is_inside = limit.inside == ".*" or any(re.fullmatch(limit.inside, part) for part in path[:-1])
    return is_inside and re.fullmatch(limit.key, path[-1].lower()) is not None


def _numbers(value: object, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], float]]:
    """Walk through all numbers with the keys above them; those of a list have the key of the list."""
    if depth > _DEEP or (path and _INERT.fullmatch(path[-1])):
        return
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        tag = entries.get(_FLOAT)
        if len(entries) == 1 and tag in _FLOATS:
            yield path, float(cast("str", tag))
            return
        for key, inner in entries.items():
            yield from _numbers(inner, (*path, str(key)), depth + 1)
    elif isinstance(value, list | tuple):
        for inner in cast("list[object]", value):
            yield from _numbers(inner, path, depth + 1)
    elif path and isinstance(value, int | float) and not isinstance(value, bool):
        yield path, _as_float(value)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if number > 0 else -math.inf
