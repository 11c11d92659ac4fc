"""Intruder dimensions: leading singular vectors of a changed matrix that are none of the matrix before.

Shuttleworth et al. 2024, arXiv 2410.21228. A leading vector y of W' is one where its cosine to every singular vector of
W is below epsilon. Vectors are those of the shorter side. Not every cosine is computed: a Lanczos process of W's Gram
matrix from y bounds them, which is our way to the same count. No eigenvalue at or between two nodes of its Gauss
quadrature takes more of y than their weights (Chebyshev, Markov, Stieltjes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh  # pyright: ignore[reportMissingTypeStubs]

LEADING = 10
EPSILON = 0.5
_LOOKED_AT = 2 * LEADING
"""Leading vectors of W that are compared at once; most vectors of W' are among them."""
_STEPS = 160
_TOLERANCE = 1e-6
_CONVERGED = 1e-4
"""Residual of a node that is an eigenvalue, over the largest."""
_LEAST = 1e-30
"""Matrices whose largest value is smaller have no vectors here: its inverse is no float32."""

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]


def leading(matrix: Floats, k: int) -> tuple[Wide, Wide]:
    """Compute the largest singular values of a matrix, and their vectors on the shorter side.

    Args:
        matrix: finite values.
        k: number of values; at most a quarter of the shorter side is taken, and at least one.

    Returns:
        Singular values, the largest first, and the vectors as columns. Empty where they do not converge, and for a
        matrix of zeros or all but zeros.
    """
    n, scale = min(matrix.shape), _scale(matrix)
    if scale < _LEAST:
        return np.empty(0), np.empty((n, 0))
    k = max(1, min(k, n // 4))
    if n <= 2 * _LOOKED_AT:
        small = matrix if matrix.shape[0] == n else matrix.T
        wide = small.astype(np.float64) / scale
        values, vectors = np.linalg.eigh(wide @ wide.T)
    else:
        start = np.random.default_rng(0).standard_normal(n)
        operator: Any = LinearOperator((n, n), matvec=lambda v: _gram(matrix, v, scale), dtype=np.float64)  # pyright: ignore[reportCallIssue]
        try:
            values, vectors = eigsh(operator, k=k, v0=start, tol=_TOLERANCE)  # pyright: ignore[reportArgumentType]
        except ArpackError:
            return np.empty(0), np.empty((n, 0))
    order = np.argsort(-values)[:k]
    return scale * np.sqrt(np.maximum(values[order], 0)), np.asarray(vectors[:, order])


def count(changed: Floats, base: Floats, of_base: Wide) -> int:
    """Count the intruders among the leading singular vectors of a changed matrix.

    Args:
        changed: W'.
        base: W, of the same shape.
        of_base: leading vectors of W, as columns.

    Returns:
        Vectors of which it is certain that none of W has a cosine of EPSILON to them.
    """
    _, vectors = leading(changed, LEADING)
    known = np.abs(of_base.T @ vectors).max(axis=0, initial=0.0)
    scale = _scale(base)
    return sum(_most_shared(base, vectors[:, j], scale) < EPSILON**2 for j in np.flatnonzero(known < EPSILON))


def _scale(matrix: Floats) -> float:
    return float(np.abs(matrix).max(initial=0.0))


def _gram(matrix: Floats, vector: Wide, scale: float) -> Wide:
    """Multiply a vector of the shorter side by the Gram matrix of the matrix over its largest value."""
    narrow = (vector.reshape(-1) / scale).astype(np.float32)
    rows, cols = matrix.shape
    one, other = (matrix.T, matrix) if rows <= cols else (matrix, matrix.T)
    return (other @ ((one @ narrow) / np.float32(scale))).astype(np.float64)


def _most_shared(base: Floats, y: Wide, scale: float) -> float:
    """Bound the largest squared cosine of y to a singular vector of W from above."""
    steps = min(len(y), _STEPS)
    basis = np.zeros((steps, len(y)))
    basis[0] = y / np.linalg.norm(y)
    diagonal, off = np.zeros(steps), np.zeros(steps)
    for j in range(steps):
        image = _gram(base, basis[j], scale)
        diagonal[j] = image @ basis[j]
        for _ in range(2):
            image -= basis[: j + 1].T @ (basis[: j + 1] @ image)
        off[j] = np.linalg.norm(image)
        if off[j] <= 1e-6 * max(diagonal[0], diagonal.max()):  # y lies in a space that W maps to itself
            off[j], steps = 0.0, j + 1
            break
        if j + 1 < steps:
            basis[j + 1] = image / off[j]
    nodes, vectors = np.linalg.eigh(
        np.diag(diagonal[:steps]) + np.diag(off[: steps - 1], 1) + np.diag(off[: steps - 1], -1)
    )
    weights = np.square(vectors[0])
    is_open = np.abs(off[steps - 1] * vectors[-1]) > _CONVERGED * np.abs(nodes).max()
    between = np.where(is_open[1:] | is_open[:-1], weights[1:] + weights[:-1], 0.0)
    return float(max(weights.max(), between.max(initial=0.0)))
