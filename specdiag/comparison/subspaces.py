"""Principal angles between the leading singular subspaces of two matrices.

The k leading singular vectors of the smaller side are eigenvectors of its float64 Gram matrix, those of the other side
follow by one product. Cosines of the principal angles are the singular values of U_A^T U_B (Bjorck and Golub 1973).
Costs two Gram matrices and two tridiagonal reductions a pair: a quarter of a comparison on MiniLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh  # pyright: ignore[reportUnknownVariableType]

from specdiag.comparison.difference import Pair, read_stack
from specdiag.comparison.records import Subspaces
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FloatType, RawArray
from specdiag.system.blas_threads import OneBlasThread

_BLOCK_VALUES = 1 << 21


def all_subspaces(pairs: Iterable[Pair], k: int, workers: int) -> Iterator[tuple[str, Subspaces | None]]:
    """Compare the leading subspaces of every pair, in worker threads.

    Args:
        pairs: matched matrices of equal shape.
        k: dimension of the subspaces.
        workers: number of threads.

    Yields:
        The name of each pair, in order, and its angles; None where its matrices have several slices, cannot be read, or
            have too few directions.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="specdiag")
    with OneBlasThread():
        try:
            yield from pool.map(lambda pair: (pair[0], _of_pair(pair, k)), pairs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def subspaces(a: RawArray, type_a: FloatType, b: RawArray, type_b: FloatType, k: int) -> Subspaces | None:
    """Compute the principal angles between the spans of the k leading singular vectors of A and B.

    Args:
        a: raw finite values, shape [rows, cols].
        type_a: their type.
        b: of the same shape.
        type_b: their type.
        k: dimension; at most a quarter of the smaller side is taken.

    Returns:
        The angles; None where no direction is left, a matrix has fewer than k, or squares exceed float64.
    """
    k = min(k, min(a.shape) // 4)
    if k < 1:
        return None
    of_a, of_b = _leading(a, type_a, k), _leading(b, type_b, k)
    if of_a is None or of_b is None:
        return None
    left, right = _cosines(of_a[0], of_b[0]), _cosines(of_a[1], of_b[1])
    return Subspaces(
        k=k,
        left=left,
        right=right,
        left_angle=float(np.degrees(np.arccos(left[-1]))),
        right_angle=float(np.degrees(np.arccos(right[-1]))),
        gap=of_a[2],
    )


def _of_pair(pair: Pair, k: int) -> Subspaces | None:
    _, a, b = pair
    if b.n_slices != 1:
        return None
    try:
        (raw_a, type_a), (raw_b, type_b) = read_stack(a), read_stack(b)
    except (SourceError, OSError):
        return None  # the status of its row reports it
    return subspaces(raw_a[0], type_a, raw_b[0], type_b, k)


def _leading(w: RawArray, storage: FloatType, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64], float] | None:
    """Compute the k leading left and right singular vectors, as columns, and the relative gap below them.

    None where the matrix has fewer than k directions, or squares exceed float64.
    """
    tall = w if w.shape[0] >= w.shape[1] else w.T
    n = tall.shape[1]
    gram = np.zeros((n, n))
    for block in _blocks(tall, storage):
        gram += block.T @ block
    if not np.isfinite(np.trace(gram)):
        return None  # squares beyond the range of float64
    values, vectors = eigh(gram, subset_by_index=(n - k - 1, n - 1), check_finite=False, overwrite_a=True)
    sigma = np.sqrt(np.maximum(values[::-1], 0))
    if sigma[0] == 0 or sigma[k - 1] <= 1e-7 * sigma[0]:
        return None  # fewer than k directions
    small = vectors[:, :0:-1]
    large = np.concatenate([block @ small for block in _blocks(tall, storage)]) / sigma[:k]
    gap = float((sigma[k - 1] - sigma[k]) / sigma[k - 1])
    return (large, small, gap) if tall is w else (small, large, gap)


def _blocks(tall: RawArray, storage: FloatType) -> Iterator[NDArray[np.float64]]:
    step = max(1, _BLOCK_VALUES // tall.shape[1])
    for start in range(0, tall.shape[0], step):
        yield storage.widen(tall[start : start + step], np.dtype(np.float64))


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(c) for c in np.minimum(np.linalg.svd(a.T @ b, compute_uv=False), 1.0))
