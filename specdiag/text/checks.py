"""Checks of arguments at the doors of the library: closed lists, ranges, types. A refusal says what is allowed."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

from specdiag.errors import UsageError

_T = TypeVar("_T", bound=str)

_SHOWN = 60
_LONGEST_NAME = 255
"""Bytes of a file's name."""
MOST = 2**63 - 1
"""The largest whole number that every file format here can hold."""
MOST_RATE = 1e6
"""The largest learning rate or weight decay that is taken for one."""


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise UsageError unless `value` is one of the texts `allowed`."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise UsageError(f"unknown {name}={shown(value)}; choose from {', '.join(allowed)}")


def number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> float:
    """Check a finite number within bounds.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that is allowed.
        above: what it must exceed.
        most: the largest that is allowed.
        below: what it must stay under.
        hint: a usual value or what it means, put at the end of the refusal.

    Raises:
        UsageError: it is none, or outside.
    """
    found = _real(value)
    inside = found is not None and (
        (least is None or found >= least)
        and (above is None or found > above)
        and (most is None or found <= most)
        and (below is None or found < below)
    )
    if found is None or not inside:
        bounds = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
        allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise UsageError(f"{name}={shown(value)}: give a number {allowed}".rstrip() + _after(hint))
    return found


def pair(name: str, value: object) -> tuple[float, float]:
    """Check two finite numbers.

    Raises:
        UsageError: they are not.
    """
    given = tuple(cast("Sequence[object]", value)) if isinstance(value, (tuple, list)) else ()
    if len(given) != 2:
        raise UsageError(f"{name}={shown(value)}: give two numbers")
    first, second = (number(name, each) for each in given)
    return first, second


def whole(name: str, value: object, *, least: int | None = None, most: int = MOST, hint: str = "") -> int:
    """Check a whole number within bounds.

    Raises:
        UsageError: it is none, or outside.
    """
    if isinstance(value, numbers.Integral) and value is not True and value is not False:
        found = int(value)
        if (least is None or found >= least) and found <= most:
            return found
    allowed = "" if least is None else f" of at least {least}"
    allowed += "" if most == MOST else f"{' and' if allowed else ' of'} at most {most:,}"
    raise UsageError(f"{name}={shown(value)}: give a whole number{allowed}{_after(hint)}")


def wholes(name: str, value: object) -> tuple[int, ...]:
    """Check several whole numbers that are not negative.

    Raises:
        UsageError: they are not.
    """
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise UsageError(f"{name}={shown(value)}: give whole numbers, such as (64, 64)")
    return tuple(whole(name, each, least=0) for each in cast("Iterable[object]", value))


def flag(name: str, value: object) -> bool:
    """Check a flag, True or False.

    Raises:
        UsageError: it is anything else.
    """
    if value is not True and value is not False:
        raise UsageError(f"{name}={shown(value)}: give True or False")
    return value


def text(name: str, value: object) -> str:
    """Check a text that can be written to a file.

    Raises:
        UsageError: it is no text, or holds half a character.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name}={shown(value)}: give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name}={shown(value)}: it cannot be written as UTF-8") from None
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """Check one text or several.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, str):
        return (text(name, value),)
    if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray)):
        raise UsageError(f"{name}={shown(value)}: give a text or several")
    return tuple(text(name, item) for item in cast("Iterable[object]", value))


def each_of(name: str, value: object, allowed: Sequence[_T]) -> tuple[_T, ...]:
    """Check one text or several of those `allowed`, and return them as they were given.

    Args:
        name: of the argument, in the plural.
        value: what was given.
        allowed: all texts that there are.

    Raises:
        UsageError: there is no such one.
    """
    given = texts(name, value)
    if unknown := [text for text in given if text not in allowed]:
        raise UsageError(f"unknown {name}={shown(unknown[0])}; {name} are {', '.join(allowed)}")
    return cast("tuple[_T, ...]", given)


def path(name: str, value: object) -> Path:
    """Check a path.

    Raises:
        UsageError: it is empty, no path, or holds a null character.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name}={shown(value)}: give a path")
    found = cast("object", os.fspath(cast("str | os.PathLike[str]", value)))
    if not isinstance(found, str) or not found or not is_name(found):
        raise UsageError(f"{name}={shown(found)}: give a path")
    return Path(found)


def is_name(text: str) -> bool:
    """Tell whether a file may have this path: no null character, no half characters, no overlong part."""
    try:
        return "\0" not in text and all(len(part) <= _LONGEST_NAME for part in os.fsencode(text).split(b"/"))
    except UnicodeEncodeError:
        return False


def instance(name: str, value: object, kind: type[object], how: str) -> None:
    """Raise UsageError unless `value` is of a type; `how` says where one comes from."""
    if not isinstance(value, kind):
        raise UsageError(f"{name}={shown(value)}: give a {kind.__name__}, {how}")


def function(name: str, value: object) -> None:
    """Raise UsageError unless `value` can be called, or is None."""
    if value is not None and not callable(value):
        raise UsageError(f"{name}={shown(value)}: give a function, or None")


def names(given: Mapping[str, object], allowed: Sequence[str]) -> None:
    """Raise UsageError where an option does not exist, with the one that may have been meant."""
    for name in given:
        if name not in allowed:
            close = get_close_matches(name, allowed, 1)
            help_ = f"did you mean {close[0]}?" if close else f"there are {', '.join(allowed)}"
            raise UsageError(f"there is no option {name}: {help_}")


def shown(value: object) -> str:
    """Write a value on one short line."""
    try:
        found = repr(value)
    except Exception:  # noqa: BLE001 - a repr may fail in any way: 10**5000 has too many digits for one
        found = f"a {type(value).__name__}"
    found = found.replace("\n", " ")
    return found if len(found) <= _SHOWN else f"{found[: _SHOWN - 3]}..."


def _real(value: object) -> float | None:
    """A finite float; None for what is none."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of torch or numpy
        value = cast("Any", value).item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _after(hint: str) -> str:
    return f", {hint}" if hint else ""
