"""Counts in a sentence.

>>> counted(1, "tensor"), counted(3, "tensor")
('1 tensor', '3 tensors')
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
