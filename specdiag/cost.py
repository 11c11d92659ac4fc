"""What a matrix will cost, before it is read: the order of the work, the progress bar and `--dry-run` use it."""

from __future__ import annotations

from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.records import Settings

FLOPS_PER_SECOND = {"float64": 24e9, "float32": 48e9}
"""One core's typical rate over Gram and eigensolver together; a guess for estimates, good to a factor of two or so."""

_BLOCK = 64 << 20


def flops(matrix: WeightMatrix, settings: Settings) -> float:
    """Floating-point operations of one matrix: Gram n^2 m, eigenvalues 4/3 n^3, and the same for square windows."""
    n, m = sorted(matrix.shape)
    total = n * n * m + 4 / 3 * n**3
    if settings.square and n < m:
        total += -(-m // n) * (1 + 4 / 3) * n**3
    return total * matrix.n_slices * (2 if settings.randomize else 1)


def memory(matrix: WeightMatrix, settings: Settings) -> int:
    """Bytes that one worker holds at most: the stored tensor, one widened block, the Gram and the solver's copy."""
    item = 8 if settings.dtype == "float64" else 4
    n, m = sorted(matrix.shape)
    stored = matrix.tensor.nbytes
    if matrix.slicer.index is not None:
        stored //= matrix.tensor.shape[0]
    widened = n * m * item if settings.method == "svd" else min(n * m * item, max(_BLOCK, n * n // 2 * item))
    return 2 * stored + widened + 2 * n * n * item
