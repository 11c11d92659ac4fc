"""Recognising tensors by content: digests that do not see the order of the values, permutations of rows and columns.

Names may say nothing, and a conversion may lay values anew. Values are first rounded to the type of the other side.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray
from specdiag.verification.values import Values, blocks

_FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
Indices = NDArray[np.intp]


def digest(tensor: StoredTensor, kind: FloatType) -> int:
    """Hash the values of a tensor whatever their order, rounded to a type.

    Args:
        tensor: of a floating-point type.
        kind: the type of the other side.

    Returns:
        A number of 64 bits.

    Raises:
        SourceError: it cannot be read.
    """
    flat = tensor.read(None).reshape(-1)
    values = Values(flat, FLOAT_TYPES[tensor.values_dtype])
    total = 0
    for cut in blocks(flat.size):
        total += int(_mixed(codes(values, kind, cut)).sum())
    return (total + prod(tensor.shape)) % (1 << 64)


def codes(values: Values, kind: FloatType, cut: slice = slice(None)) -> NDArray[np.uint64]:
    """Round values to a type and give their bits, without the sign of zeros.

    Args:
        values: of any type.
        kind: to round to.
        cut: a range of the flat values.
    """
    rounded = kind.narrow(values.wide(cut))
    bits = np.ascontiguousarray(rounded).view(f"u{rounded.dtype.itemsize}").astype(np.uint64)
    negative_zero = np.uint64(1 << (8 * rounded.dtype.itemsize - 1))
    bits[bits == negative_zero] = 0
    return bits


def permutation(source: Values, target: Values) -> tuple[str, Indices] | None:
    """Find the order of rows, or of columns, that turns one matrix into another.

    Args:
        source: one matrix; it is rounded to the type of the other.
        target: of the same shape.

    Returns:
        `rows` or `columns`, and the index in `source` of each; None where no order does.
    """
    if source.raw.shape != target.raw.shape or source.raw.shape[0] != 1:
        return None
    before, after = (codes(side, target.kind).reshape(side.raw.shape[1:]) for side in (source, target))
    for axis, word in ((1, "rows"), (0, "columns")):
        order = _order(_line_digests(before, axis), _line_digests(after, axis))
        if order is not None and np.array_equal(np.take(before, order, axis=1 - axis), after):
            return word, order
    return None


def _order(before: RawArray, after: RawArray) -> Indices | None:
    first, second = np.argsort(before, kind="stable"), np.argsort(after, kind="stable")
    if not np.array_equal(before[first], after[second]):
        return None
    order = np.empty_like(first)
    order[second] = first
    return order


def _line_digests(bits: NDArray[np.uint64], axis: int) -> NDArray[np.uint64]:
    """Hash each row (axis 1) or column (axis 0), in the order of its values."""
    factors = np.random.default_rng(0).integers(0, 1 << 64, bits.shape[axis], np.uint64, endpoint=False) | np.uint64(1)
    weighed = _mixed(bits) * (factors if axis == 1 else factors[:, None])
    return weighed.sum(axis=axis, dtype=np.uint64)


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (bits + np.uint64(1)) * _FIRST
    mixed ^= mixed >> np.uint64(29)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(32)
    return mixed
