"""Counts in a sentence.

>>> counted(1, "tensor"), counted(3, "tensor")
('1 tensor', '3 tensors')
>>> abbreviated(22_713_216), abbreviated(134_500_000_000), abbreviated(512)
('22.7 M', '134 B', '512')
"""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """Write a number of things.

    Args:
        n: how many.
        noun: the singular of a word that takes an s.

    Returns:
        `"1 tensor"`, or `"3 tensors"`.
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


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
