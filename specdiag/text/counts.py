"""Counts and shares in a sentence.

>>> counted(1, "tensor"), counted(3, "tensor")
('1 tensor', '3 tensors')
>>> abbreviated(22_713_216), abbreviated(134_500_000_000), abbreviated(512)
('22.7 M', '134 B', '512')
>>> percent(0.98), percent(0.0316, 1), percent(0.2, 1, "+"), percent(-0.001)
('98 %', '3.2 %', '+20.0 %', '0 %')
>>> parse_count("20B"), parse_count("7e9"), parse_count("135m")
(20000000000.0, 7000000000.0, 135000000.0)
"""

from __future__ import annotations

import re


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Write a number of things.

    Args:
        n: how many.
        noun: the singular.
        plural: the plural, of a word that does not take an s.

    Returns:
        `"1 tensor"`, or `"3 tensors"`.
    """
    return f"{n} {noun if n == 1 else plural or f'{noun}s'}"


def abbreviated(n: int) -> str:
    """Write a large number with three digits that matter.

    Args:
        n: at least 0.

    Returns:
        Such as `"22.7 M"`.
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return str(n)


_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_COUNT = re.compile(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([kmbgt]?)\s*", re.IGNORECASE)


def parse_count(text: str) -> float:
    """Read a large number as people write it.

    Args:
        text: such as `20B`, `7e9`, `135m`, `1.3 T` or `500,000`; k, m, b (or g) and t are powers of a thousand.

    Raises:
        ValueError: it is no such number.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is no count: write 20B, 7e9 or 135m")
    return float(match[1].replace(",", "").replace("_", "")) * _SIZES[match[2].lower()]


def percent(share: float, digits: int = 0, sign: str = "") -> str:
    """Write a share in percent.

    Args:
        share: 1 is 100 %.
        digits: after the decimal point.
        sign: `"+"` to show the sign of a change.

    Returns:
        Such as `"98 %"`, the one way in which percents are written.
    """
    rounded = round(100 * share, digits) + 0.0
    return f"{rounded:{sign}.{digits}f} %"
