"""What a matrix will cost, before it is read: the order of the work, the progress bar and `--dry-run` use it."""

from __future__ import annotations

import math

from specdiag.checkpoint.tensors import FLOAT_TYPES, WeightMatrix
from specdiag.records import Settings

FLOPS_PER_SECOND = {"float64": 24e9, "float32": 48e9}
"""One core's typical rate over Gram and eigensolver together; a guess for estimates, good to a factor of two or so."""

_BLOCK = 64 << 20


def flops(matrix: WeightMatrix, settings: Settings) -> float:
    """Floating-point operations of one matrix: Gram n^2 m, eigenvalues 4/3 n^3, and the same for square windows."""
    n, m = _size(matrix)
    total = n * n * m + 4 / 3 * n**3
    if settings.square and n < m:
        total += -(-m // n) * (1 + 4 / 3) * n**3
    return total * matrix.n_slices * (2 if settings.randomize else 1)


def memory(matrix: WeightMatrix, settings: Settings) -> int:
    """Bytes that one worker holds at most: the stored tensor, one widened block, the Gram and the solver's copy.

    Of a quantised tensor the codes, their values, and as much again while these are computed.
    """
    item = 8 if settings.dtype == "float64" else 4
    n, m = _size(matrix)
    tensor = matrix.tensor
    stored = tensor.nbytes
    if tensor.values is not None:
        stored += 2 * math.prod(tensor.shape) * FLOAT_TYPES[tensor.values].storage.itemsize
    if matrix.slicer.index is not None:
        stored //= tensor.shape[0]
    widened = n * m * item if settings.method == "svd" else min(n * m * item, max(_BLOCK, n * n // 2 * item))
    return 2 * stored + widened + 2 * n * n * item


def stored_bytes(matrix: WeightMatrix) -> int:
    """What a matrix takes on disk: its share of the stored tensor, of an update all of its factors."""
    if matrix.rank is not None:
        return matrix.tensor.nbytes
    values = matrix.n_slices * matrix.shape[0] * matrix.shape[1]
    stored = math.prod(matrix.tensor.shape) or 1
    return matrix.tensor.nbytes * values // stored


def _size(matrix: WeightMatrix) -> tuple[int, int]:
    """Sides of what is decomposed, the smaller one first."""
    n, m = sorted(matrix.shape)
    return (n, m) if matrix.rank is None else (matrix.rank, matrix.rank)
