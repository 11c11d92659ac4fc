"""Checks of the library's public arguments: closed lists, ranges, types. A refusal says what is allowed."""

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
"""The largest learning rate or weight decay that is accepted."""
LEAST_RATE = 1e-20
"""The smallest one above 0: the steps in which a product of two of them acts are still counted."""


def one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Check a text of a closed list.

    Args:
        name: of the argument.
        value: what was given.
        allowed: all texts of the list.

    Raises:
        UsageError: the text is none of these.
    """
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

    Returns:
        The number as a float, also from a scalar of numpy or torch.

    Raises:
        UsageError: it is no finite number, or outside of the bounds.
    """
    converted = _real(value)
    inside = converted is not None and (
        (least is None or converted >= least)
        and (above is None or converted > above)
        and (most is None or converted <= most)
        and (below is None or converted < below)
    )
    if converted is None or not inside:
        bounds = (("of at least", least), ("above", above), ("of at most", most), ("below", below))
        allowed = " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        raise UsageError(f"{name}={shown(value)}: give a number {allowed}".rstrip() + _after(hint))
    return converted


def rate(name: str, value: object, *, least: float | None = 0, above: float | None = None, hint: str = "") -> float:
    """Check a learning rate or a weight decay.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that is allowed.
        above: what it must exceed.
        hint: as of `number`.

    Raises:
        UsageError: it is no finite number, outside of the bounds, or so near to 0 that steps cannot be counted.
    """
    checked = number(name, value, least=None if above is not None else least, above=above, most=MOST_RATE, hint=hint)
    if 0 < checked < LEAST_RATE:
        zero = "" if above is not None else "0, or "
        raise UsageError(f"{name}={shown(value)}: give {zero}a number of at least {LEAST_RATE:g}{_after(hint)}")
    return checked


def pair(name: str, value: object) -> tuple[float, float]:
    """Check two finite numbers.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        UsageError: it is no tuple or list of two finite numbers.
    """
    items = tuple(cast("Sequence[object]", value)) if isinstance(value, (tuple, list)) else ()
    if len(items) != 2:
        raise UsageError(f"{name}={shown(value)}: give two numbers")
    first, second = (number(name, each) for each in items)
    return first, second


def whole(name: str, value: object, *, least: int | None = None, most: int = MOST, hint: str = "") -> int:
    """Check a whole number within bounds.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that is allowed; None for any.
        most: the largest that is allowed.
        hint: a usual value or what it means, put at the end of the refusal.

    Raises:
        UsageError: it is no whole number, or outside of the bounds.
    """
    if isinstance(value, numbers.Integral) and value is not True and value is not False:
        converted = int(value)
        if (least is None or converted >= least) and converted <= most:
            return converted
    allowed = "" if least is None else f" of at least {least}"
    allowed += "" if most == MOST else f"{' and' if allowed else ' of'} at most {most:,}"
    raise UsageError(f"{name}={shown(value)}: give a whole number{allowed}{_after(hint)}")


def wholes(name: str, value: object) -> tuple[int, ...]:
    """Check several whole numbers that are not negative.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        UsageError: it is nothing to iterate over, or holds anything else.
    """
    items = _items(value)
    if items is None:
        raise UsageError(f"{name}={shown(value)}: give whole numbers, such as (64, 64)")
    return tuple(whole(name, each, least=0) for each in items)


def flag(name: str, value: object) -> bool:
    """Check a flag, True or False.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        UsageError: it is anything else.
    """
    if value is not True and value is not False:
        raise UsageError(f"{name}={shown(value)}: give True or False")
    return value


def text(name: str, value: object) -> str:
    """Check a text that can be written to a file.

    Args:
        name: of the argument.
        value: what was given.

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

    Args:
        name: of the argument.
        value: what was given.

    Returns:
        All of them, a single one too.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, str):
        return (text(name, value),)
    items = _items(value)
    if items is None:
        raise UsageError(f"{name}={shown(value)}: give a text or several")
    return tuple(text(name, item) for item in items)


def each_of(name: str, value: object, allowed: Sequence[_T]) -> tuple[_T, ...]:
    """Check one text or several of a closed list.

    Args:
        name: of the argument, in the plural.
        value: what was given.
        allowed: all texts of the list.

    Returns:
        All of them in the order given, a single one too.

    Raises:
        UsageError: one is not in the list.
    """
    items = texts(name, value)
    if unknown := [text for text in items if text not in allowed]:
        raise UsageError(f"unknown {name}={shown(unknown[0])}; {name} are {', '.join(allowed)}")
    return cast("tuple[_T, ...]", items)


def path(name: str, value: object) -> Path:
    """Check a path.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        UsageError: it is empty, no path, or a name that no file can have.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name}={shown(value)}: give a path")
    raw = cast("object", os.fspath(cast("str | os.PathLike[str]", value)))
    if not isinstance(raw, str) or not raw or not is_name(raw):
        raise UsageError(f"{name}={shown(raw)}: give a path")
    return Path(raw)


def is_name(text: str) -> bool:
    """Tell whether a file may have this path: no null character, no half characters, no overlong part."""
    try:
        return "\0" not in text and all(len(part) <= _LONGEST_NAME for part in os.fsencode(text).split(b"/"))
    except UnicodeEncodeError:
        return False


def instance(name: str, value: object, kind: type[object], how: str) -> None:
    """Check the type of an argument.

    Args:
        name: of the argument.
        value: what was given.
        kind: the type.
        how: where one comes from, such as "from analyze or load_report".

    Raises:
        UsageError: it is of another type.
    """
    if not isinstance(value, kind):
        raise UsageError(f"{name}={shown(value)}: give a {kind.__name__}, {how}")


def function(name: str, value: object) -> None:
    """Check that an argument can be called, or is None.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        UsageError: it is anything else.
    """
    if value is not None and not callable(value):
        raise UsageError(f"{name}={shown(value)}: give a function, or None")


def names(options: Mapping[str, object], allowed: Sequence[str]) -> None:
    """Check that options exist.

    Args:
        options: those that were given.
        allowed: the names of all.

    Raises:
        UsageError: one does not exist; the message names the one that may have been meant.
    """
    for name in options:
        if name not in allowed:
            close = get_close_matches(name, allowed, 1)
            help_ = f"did you mean {close[0]}?" if close else f"there are {', '.join(allowed)}"
            raise UsageError(f"there is no option {name}: {help_}")


def shown(value: object) -> str:
    """Write a value on one short line."""
    try:
        written = repr(value)
    except Exception:  # noqa: BLE001 - a repr may fail in any way: 10**5000 has too many digits for one
        written = f"a {type(value).__name__}"
    written = written.replace("\n", " ")
    return written if len(written) <= _SHOWN else f"{written[: _SHOWN - 3]}..."


def _items(value: object) -> tuple[object, ...] | None:
    """List what a value holds; None for a text, for bytes, and for what holds nothing."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray)):
        return None
    try:
        return tuple(cast("Iterable[object]", value))
    except TypeError:  # an array without axes, of numpy or torch
        return None


def _real(value: object) -> float | None:
    """Convert to a finite float; None for anything that is none."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # of torch or numpy
        value = cast("Any", value).item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        real = float(value)
    except OverflowError:
        return None
    return real if math.isfinite(real) else None


def _after(hint: str) -> str:
    return f", {hint}" if hint else ""
