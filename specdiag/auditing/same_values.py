"""Comparison of two stored tensors by value, one pair at a time, allowing for the rounding of a coarser type."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray

_BLOCK_VALUES = 1 << 18


class Difference(NamedTuple):
    """How two tensors differ.

    Attributes:
        n_values: number of values of each.
        n_different: number of values that differ by more than rounding.
        relative: root of the squares of these differences over that of all squares; None where no finite ones differ.
    """

    n_values: int
    n_different: int
    relative: float | None

    def __str__(self) -> str:
        share = f"{self.n_different} of {self.n_values} values differ"
        return share if self.relative is None else f"{share}, by {self.relative:.2g} of the norm"


def can_compare(one: StoredTensor, other: StoredTensor) -> bool:
    """Tell whether the values of two tensors of one shape can be compared: floats, or the same type.

    Args:
        one: a tensor.
        other: another one.
    """
    if one.rounding is not None or other.rounding is not None:
        return one.dtype == other.dtype
    types = one.values_dtype, other.values_dtype
    return types[0] == types[1] or all(dtype in FLOAT_TYPES for dtype in types)


def difference(one: StoredTensor, other: StoredTensor, *, exact: bool = False) -> Difference | None:
    """Compare the values of two tensors.

    Values of one type are equal where they are the same number, or both NaN. Of two types the one of fewer digits
    decides: a difference of up to its last digit, eps times the larger of the two values, is rounding. That allows
    conversions that cut off instead of rounding to the nearest, and values that went through a third type.

    Args:
        one: a tensor.
        other: a tensor of the same shape, with which `can_compare` allows it to be compared.
        exact: allow no rounding.

    Returns:
        The difference; None where there is none.

    Raises:
        SourceError: a tensor cannot be read.
        OSError: likewise.
    """
    left, right = (np.ascontiguousarray(tensor.read(None)).reshape(-1) for tensor in (one, other))
    kinds = FLOAT_TYPES.get(one.values_dtype), FLOAT_TYPES.get(other.values_dtype)
    if kinds[0] is None or kinds[1] is None:
        n_different = int(np.count_nonzero(left != right))
        return Difference(left.size, n_different, None) if n_different else None
    return _of_floats(left, right, kinds[0], kinds[1], exact=exact)


def _of_floats(left: RawArray, right: RawArray, one: FloatType, other: FloatType, *, exact: bool) -> Difference | None:
    if one is other and left.tobytes() == right.tobytes():
        return None
    coarse = max(one, other, key=lambda kind: kind.eps)
    eps = 0.0 if exact or one is other else coarse.eps
    n_different, squares, total = 0, 0.0, 0.0
    for start in range(0, left.size, _BLOCK_VALUES):
        a, b = (
            kind.widen(side[start : start + _BLOCK_VALUES], np.dtype(np.float64))
            for side, kind in ((left, one), (right, other))
        )
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(a - b)
            size = np.maximum(np.maximum(np.abs(a), np.abs(b)), coarse.tiny)
            same = (a == b) | (np.isnan(a) & np.isnan(b)) | (gap <= eps * np.where(np.isfinite(size), size, 0.0))
        n_different += a.size - int(np.count_nonzero(same))
        squares += float(np.square(gap[np.isfinite(gap) & ~same]).sum())
        total += float(np.square(a[np.isfinite(a)]).sum())
    if not n_different:
        return None
    return Difference(left.size, n_different, (squares / total) ** 0.5 if squares and total else None)


def is_finer(one: StoredTensor, other: StoredTensor) -> bool:
    """Tell whether a tensor is stored in floats of more digits and range than another one: a cast to it rounds nothing.

    Args:
        one: a tensor.
        other: another one.
    """
    kinds = FLOAT_TYPES.get(one.values_dtype), FLOAT_TYPES.get(other.values_dtype)
    if kinds[0] is None or kinds[1] is None:
        return False
    return kinds[0].eps < kinds[1].eps and kinds[0].tiny <= kinds[1].tiny and kinds[0].max >= kinds[1].max
