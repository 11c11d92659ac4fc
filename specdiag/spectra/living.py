"""The living part of a matrix: its rows and columns that hold more than storage noise.

A matrix with dead rows or columns is a smaller one beside zeros. What compares it with random matrices, and what takes
its shape out, goes by the shape of the living part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.float_types import FloatType, RawArray

_BLOCK_VALUES = 1 << 17
_FEW = 1 << 12
"""Values that are looked at together first: of so few, most often none is noise."""
_STARTS = 16
"""Values at which a row or column is looked at first."""


def noise_of_a_weight(frobenius2: float, n_values: int, eps: float) -> float:
    """Give the size of four roundoffs of a typical weight, 2 eps ||W||_F/sqrt(n m).

    Args:
        frobenius2: ||W||_F^2, all slices.
        n_values: number of values, all slices.
        eps: spacing of the storage type at 1.
    """
    return 2 * eps * (frobenius2 / n_values) ** 0.5


def living_shape(stack: RawArray, storage: FloatType, frobenius2: float) -> tuple[int, int]:
    """Count the rows and columns with a value above the storage noise of a typical weight, in any slice.

    A matrix without any, as the difference of two types that lies below their rounding, has no dead ones.

    Args:
        stack: raw finite values, shape [s, rows, cols].
        storage: their type.
        frobenius2: ||W||_F^2, all slices.
    """
    least = noise_of_a_weight(frobenius2, stack.size, storage.eps)
    if stack.size <= _FEW and np.abs(storage.widen(stack, np.dtype(np.float64))).min() > least:
        return stack.shape[1], stack.shape[2]
    if _starts_alive(stack, storage, least):
        return stack.shape[1], stack.shape[2]
    rows, cols = _largest(stack, storage)
    alive = int(np.count_nonzero(rows > least)), int(np.count_nonzero(cols > least))
    return alive if min(alive) > 0 else (stack.shape[1], stack.shape[2])


def _starts_alive(stack: RawArray, storage: FloatType, least: float) -> bool:
    """Tell whether the first few values of each row and column leave no doubt that it is alive, as they mostly do."""
    sides = ((stack[:, :, :_STARTS], (0, 2)), (stack[:, :_STARTS], (0, 1)))
    return all(
        bool((np.abs(storage.widen(part, np.dtype(np.float64))).max(axis=axes) > least).all()) for part, axes in sides
    )


def _largest(stack: RawArray, storage: FloatType) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest magnitude in each row and in each column.

    IEEE formats order their magnitudes as their unsigned codes do, so that nothing is widened but the results.
    """
    unsigned = np.dtype(f"u{storage.storage.itemsize}")
    magnitude = unsigned.type(np.iinfo(unsigned).max >> 1)
    rows, cols = np.zeros(stack.shape[1], unsigned), np.zeros(stack.shape[2], unsigned)
    step = max(1, _BLOCK_VALUES // stack.shape[2])
    for slice_ in stack:
        for start in range(0, len(rows), step):
            block = np.ascontiguousarray(slice_[start : start + step]).view(unsigned) & magnitude
            part = rows[start : start + step]
            np.maximum(part, block.max(axis=1), out=part)
            np.maximum(cols, block.max(axis=0), out=cols)
    widened = (storage.widen(codes.view(storage.storage), np.dtype(np.float64)) for codes in (rows, cols))
    first, second = widened
    return first, second
