"""The null of a low-rank update: products of two factors of independent Gaussian entries.

Only the triangles of the factors' QR decompositions are drawn: chi-distributed diagonals and normal entries above them
(Bartlett 1933), so that a draw costs r x r values whatever the sides are.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_DRAWS = 200
_LARGEST = 128
"""Rank up to which all draws are made; of larger ones few are, whose spread is small."""


def energy_share(sigma: NDArray[np.float64]) -> float:
    """Compute the share of the squared singular values in the first.

    Args:
        sigma: singular values, the largest first, not all zero.
    """
    squares = np.square(sigma / sigma[0])
    return float(squares[0] / squares.sum())


@cache
def random_shares(out: int, inputs: int, rank: int) -> tuple[float, float]:
    """Simulate the share of the energy in the first direction of B A with random factors.

    Args:
        out: rows of B.
        inputs: columns of A.
        rank: columns of B and rows of A.

    Returns:
        Mean and standard deviation.
    """
    rng = np.random.default_rng((out, inputs, rank))
    draws = _DRAWS if rank <= _LARGEST else _DRAWS // 10
    shares = [energy_share(_singular_values(rng, out, inputs, rank)) for _ in range(draws)]
    return float(np.mean(shares)), float(np.std(shares))


def _triangle(rng: np.random.Generator, rows: int, rank: int) -> NDArray[np.float64]:
    """Draw the triangle of a Gaussian matrix [rows, rank]; one with fewer rows than columns is drawn itself."""
    if rows <= rank:
        return rng.standard_normal((rows, rank))
    triangle = np.triu(rng.standard_normal((rank, rank)), 1)
    np.fill_diagonal(triangle, np.sqrt(rng.chisquare(rows - np.arange(rank))))
    return triangle


def _singular_values(rng: np.random.Generator, out: int, inputs: int, rank: int) -> NDArray[np.float64]:
    product = _triangle(rng, out, rank) @ _triangle(rng, inputs, rank).T
    return np.asarray(np.linalg.svd(product, compute_uv=False), dtype=np.float64)
