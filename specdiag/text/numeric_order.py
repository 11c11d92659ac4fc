"""Names in the order of their numbers: layer 2 before layer 10.

>>> in_numeric_order(["h.10.q", "h.10.k", "h.2.q", "h.2.k", "wte"], key=str)
['h.2.q', 'h.2.k', 'h.10.q', 'h.10.k', 'wte']
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
_NUMBER = re.compile(r"([0-9]{1,18})")


def in_numeric_order(things: Iterable[T], key: Callable[[T], str]) -> list[T]:
    """Sort by the numbers in names. The text between numbers keeps the order in which it first occurs.

    Files store names alphabetically, with layer 10 before layer 2, or in the order of the model, which stays.

    Args:
        things: what is sorted.
        key: gives the name of each.
    """
    ranks: defaultdict[str, int] = defaultdict(lambda: len(ranks))

    def numbers(thing: T) -> list[int]:
        texts_and_digits = _NUMBER.split(key(thing))
        order = [0] * len(texts_and_digits)
        order[::2] = map(ranks.__getitem__, texts_and_digits[::2])
        order[1::2] = map(int, texts_and_digits[1::2])
        return order

    return sorted(things, key=numbers)
