"""Matrices with known properties, and naive references that share no code with the library."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

PATIENCE = 900.0
"""Seconds after which a process or a thread counts as hung: far more than it takes on the slowest, busiest machine."""


def lcg(rows: int, cols: int, seed: int) -> np.ndarray:
    """A matrix any language can make: x <- 1103515245 x + 12345 mod 2^31, entries x/2^31 - 1/2, row-major."""
    x, out = seed, np.empty(rows * cols)
    for i in range(rows * cols):
        x = (1103515245 * x + 12345) % 2**31
        out[i] = x / 2**31 - 0.5
    return out.reshape(rows, cols)


def with_singular_values(sigma: np.ndarray, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """U diag(sigma) V^T with random orthogonal U and V."""
    rng = np.random.default_rng(seed)
    n = min(shape)
    u = np.linalg.qr(rng.standard_normal((shape[0], n)))[0]
    v = np.linalg.qr(rng.standard_normal((shape[1], n)))[0]
    return (u * sigma) @ v.T


def esd(w: np.ndarray) -> np.ndarray:
    """Squared singular values, ascending, by the SVD."""
    return np.sort(np.linalg.svd(w.astype(np.float64), compute_uv=False) ** 2)


def naive_hill(eigenvalues: np.ndarray) -> float:
    """The AlphaDecay code's median Hill in plain Python."""
    values = sorted(float(v) for v in eigenvalues)
    i0 = len(values) // 2
    tail = values[i0:]
    return 1 + len(tail) / sum(np.log(v) - np.log(values[i0]) for v in tail)


def naive_ks(eigenvalues: np.ndarray) -> tuple[float, int, float]:
    """alpha, first index and distance of the KS-optimal power law, by trying every threshold."""
    best = (np.inf, 0, np.inf)
    for i in range(len(eigenvalues) - 1):
        tail = eigenvalues[i:]
        excess = np.log(tail / tail[0]).sum()
        if excess <= 0:
            continue
        alpha = 1 + len(tail) / excess
        distance = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()
        if distance < best[2]:
            best = (alpha, i, distance)
    return best


def mp_quantiles(n: int, q: float) -> np.ndarray:
    """Quantiles (j + 1/2)/n of the Marchenko-Pastur law of aspect ratio q, ascending, by summing its density."""
    angle, mass = _mp_angles(q)
    return 1 + q + 2 * np.sqrt(q) * np.cos(np.interp((np.arange(n)[::-1] + 0.5) / n, mass, angle))


def mp_alpha(q: float) -> float:
    """Hill exponent at tail fraction 1/2 of an infinite random matrix of aspect ratio q."""
    angle, mass = _mp_angles(q)
    logarithm = np.log(1 + q + 2 * np.sqrt(q) * np.cos(angle[:-1]))
    below = mass[:-1] <= 0.5
    return float(1 + 0.5 / np.trapezoid((logarithm - np.interp(0.5, mass[:-1], logarithm))[below], mass[:-1][below]))


def _mp_angles(q: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles t from 0 to pi and the mass above 1 + q + 2 sqrt(q) cos t."""
    angle = np.linspace(0, np.pi, 400_001)
    with np.errstate(invalid="ignore", divide="ignore"):
        density = 2 * np.sin(angle) ** 2 / (np.pi * (1 + q + 2 * np.sqrt(q) * np.cos(angle)))
    density[-1] = 2 / np.pi if q == 1 else 0.0
    steps = np.diff(angle) * (density[1:] + density[:-1]) / 2
    return angle, np.concatenate([[0], np.cumsum(steps)])


def gaussian_eigenvalues(n: int, m: int, rng: np.random.Generator, spike: float = 1.0) -> np.ndarray:
    """Eigenvalues of W W^T for an n x m matrix of standard normal entries, ascending, by its bidiagonal form.

    The entries of the first row have the variance `spike`.

    Householder reflections from both sides leave chi variables of m, ..., m - n + 1 degrees of freedom on the diagonal
    and of n - 1, ..., 1 beside it (Silverstein 1985; Dumitriu and Edelman 2002): the same law, n^2 operations.
    """
    diagonal = rng.chisquare(np.arange(m, m - n, -1.0))
    diagonal[0] *= spike
    beside = rng.chisquare(np.arange(n - 1, 0, -1.0))
    squares = diagonal + np.concatenate([[0.0], beside])
    return eigvalsh_tridiagonal(squares, np.sqrt(diagonal[:-1] * beside), check_finite=False, lapack_driver="sterf")
