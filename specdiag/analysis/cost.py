"""Estimates of the cost of a matrix before it is read, for the order of the work, the progress bar and dry runs."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.records import Settings
from specdiag.spectra.arithmetic import COARSE, first_type, fixed_type
from specdiag.spectra.farms import windows_of
from specdiag.spectra.float_types import FLOAT_TYPES

if TYPE_CHECKING:
    from specdiag.spectra.eigenvalues import ComputeType

TERMS = ("gram", "eigenvalues", "plane", "entries", "matrix")
"""n^2 m, n^3, n^2, n m and 1: what the time of a matrix is made of."""
NANOSECONDS: dict[str, tuple[float, ...]] = {
    "float64": (0.02327, 0.04631, 12.12, 5.547, 2.693e6),
    "float32": (0.006966, 0.01893, 19.35, 6.547, 8.398e5),
}
"""Time of each term on one core, fitted by benchmarks/scale.py to matrices of models up to 350M (docs/scale.md)."""

_SOLVED_AGAIN = 0.1
"""Share of matrices in coarse types that float64 solves again: 9 % of SmolLM2's codes, 10 % of MiniLM in bfloat16."""
_BLOCK = 64 << 20


def flops(matrix: WeightMatrix, settings: Settings) -> float:
    """Count operations of one matrix: Gram n^2 m, eigenvalues 4/3 n^3, by the smaller side n of all that is solved.

    A matrix that is computed from others has its share of their products too.
    """
    return _products(matrix) + matrix.n_slices * _operations(matrix.shape, matrix.rank, settings)


def seconds(matrix: WeightMatrix, settings: Settings) -> float:
    """Estimate the seconds of one matrix on one core of the machine of docs/scale.md."""
    solved = _solving(matrix.shape, matrix.rank, _eps(matrix), settings)
    return (_products(matrix) * NANOSECONDS["float64"][0] + matrix.n_slices * solved) / 1e9


@lru_cache(1024)  # a model has a few shapes
def _operations(shape: tuple[int, int], rank: int | None, settings: Settings) -> float:
    n_windows, *window = _windows(shape, rank, settings)
    solves = ((2 if settings.randomize else 1, *_size(shape, rank)), (n_windows, *window))
    return sum(count * (n * n * m + 4 / 3 * n**3) for count, n, m in solves)


@lru_cache(1024)
def _solving(shape: tuple[int, int], rank: int | None, eps: float, settings: Settings) -> float:
    """Estimate the nanoseconds of all solves of one slice."""
    n_windows, n, m = _windows(shape, rank, settings)
    solves: list[tuple[tuple[int, int], ComputeType, float]] = [
        *((_size(shape, rank), dtype, share) for dtype, share in _solves(eps, settings)),
        ((n, m), fixed_type(settings), n_windows),
    ]
    return sum(share * _nanoseconds(size, dtype) for size, dtype, share in solves if share)


def _nanoseconds(size: tuple[int, int], dtype: ComputeType) -> float:
    return float(terms(*size) @ np.array(NANOSECONDS[dtype]))


def _products(matrix: WeightMatrix) -> float:
    tensor = matrix.tensor
    if not tensor.products:
        return 0.0
    return tensor.products * math.prod(matrix.slicer.shape) / (math.prod(tensor.shape) or 1)


def _solves(eps: float, settings: Settings) -> list[tuple[ComputeType, float]]:
    """How often a matrix is solved in each arithmetic, on average."""
    randomized: list[tuple[ComputeType, float]] = [("float64", 1.0)] if settings.randomize else []
    if first_type(settings, eps) == "float32" and settings.dtype == "auto":
        return [("float32", 1.0), ("float64", _SOLVED_AGAIN), *randomized]
    return [(fixed_type(settings), 1.0), *randomized]


def _eps(matrix: WeightMatrix) -> float:
    """Spacing of the stored type at 1; codes of 8 bits and fewer are coarse, whatever their values come in."""
    if matrix.balanced_eps is not None:
        return matrix.balanced_eps
    if matrix.module.form == "function":
        return FLOAT_TYPES[matrix.tensor.values_dtype].eps
    return COARSE if matrix.dequantized else FLOAT_TYPES[matrix.tensor.values_dtype].eps


def terms(n: int, m: int) -> NDArray[np.float64]:
    """Count each of `TERMS` in an n x m matrix, n <= m; shape [5]."""
    return np.array([n * n * m, n**3, n * n, n * m, 1.0])


def memory(matrix: WeightMatrix, settings: Settings) -> int:
    """Count the most bytes of one worker: the stored tensor, one widened block, the Gram and the solver's copy.

    Of a quantised tensor the codes, their values, and as much again while these are computed.
    """
    item = 4 if settings.dtype == "float32" else 8
    n, m = _size(matrix.shape, matrix.rank)
    tensor = matrix.tensor
    stored = tensor.nbytes
    if tensor.values is not None:
        stored += 2 * math.prod(tensor.shape) * FLOAT_TYPES[tensor.values].storage.itemsize
    if matrix.slicer.index is not None:
        stored //= tensor.shape[0]
    widened = n * m * item if settings.method == "svd" else min(n * m * item, max(_BLOCK, n * n // 2 * item))
    return 2 * stored + tensor.scratch + widened + 2 * n * n * item


def _windows(shape: tuple[int, int], rank: int | None, settings: Settings) -> tuple[int, int, int]:
    """Number of the windows of `farms` and their sides, the smaller one first; no window for other rules."""
    if settings.tail != "farms" or rank is not None:
        return 0, 0, 0
    count, (rows, cols) = windows_of(shape, settings)
    return count, min(rows, cols), max(rows, cols)


def _size(shape: tuple[int, int], rank: int | None) -> tuple[int, int]:
    """Sides of what is decomposed, the smaller one first."""
    n, m = sorted(shape)
    return (n, m) if rank is None else (rank, rank)
