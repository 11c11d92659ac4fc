"""The proof that chunks cover a tensor exactly: every value once, and none twice."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import product

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a chunk."""
_MOST_DIMENSIONS = 5


def uncovered(shape: tuple[int, ...], boxes: Iterable[Box]) -> str | None:
    """Say how chunks fail to cover a tensor.

    The boxes cover it exactly where the sum of their indicator functions is that of the tensor. Both sums are given by
    the signs at the corners of their boxes (the mixed derivative), so that these are compared: in linear time, and
    exactly.

    Args:
        shape: of the tensor.
        boxes: its chunks, in any order.

    Returns:
        The end of a sentence that begins with "its chunks"; None where they cover it.

    Example:
        >>> uncovered((4, 6), [((0, 0), (2, 6)), ((2, 0), (2, 2)), ((2, 2), (2, 4))])
        >>> uncovered((4, 6), [((0, 0), (2, 6)), ((1, 0), (2, 6))])
        'overlap, and leave gaps'
    """
    boxes = list(boxes)
    whole = ((0,) * len(shape), shape)
    if boxes == [whole]:
        return None
    if len(shape) > _MOST_DIMENSIONS:
        return f"have {len(shape)} dimensions, and at most {_MOST_DIMENSIONS} can be checked"
    corners: defaultdict[tuple[int, ...], int] = defaultdict(int)
    _add(corners, whole, -1)
    for offsets, sizes in boxes:
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            return "have another number of dimensions"
        if 0 in sizes:
            continue
        if any(begin + size > end for begin, size, end in zip(offsets, sizes, shape, strict=True)):
            return "reach beyond it"
        _add(corners, (offsets, sizes), 1)
    if not any(corners.values()):
        return None
    missing = math.prod(shape) - sum(math.prod(sizes) for _, sizes in boxes)
    if missing > 0:
        return "leave gaps"
    return "overlap" if missing < 0 else "overlap, and leave gaps"


def _add(corners: defaultdict[tuple[int, ...], int], box: Box, sign: int) -> None:
    """Add the signed corners of a box: those with an odd number of upper ends count negative."""
    offsets, sizes = box
    edges = [((begin, 1), (begin + size, -1)) for begin, size in zip(offsets, sizes, strict=True)]
    for corner in product(*edges):
        corners[tuple(at for at, _ in corner)] += sign * math.prod(factor for _, factor in corner)
