"""The eigenvalues of noise: the Marchenko-Pastur law, where a real Gaussian matrix lies beside it, how far one varies.

The eigenvalues of W W^T/m for an n x m matrix (n <= m, q = n/m) with iid entries of variance 1 follow the
Marchenko-Pastur law on [(1 - sqrt q)^2, (1 + sqrt q)^2]. An angle t in [0, pi] stands for an eigenvalue,
lambda(t) = 1 + q + 2 sqrt(q) cos t, from the upper edge down.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BISECTIONS = 54


def mass_above(angle: Array, q: float) -> Array:
    """Give the mass of the law above lambda(t).

    The density in t, 2 sin^2 t/(pi lambda(t)), has a closed antiderivative; with r = sqrt q:
    pi G(t) = t - r sin t + (1 - r^2)/r^2 (arg(1 + r e^(it)) - r sin t).

    Args:
        angle: t in [0, pi], any shape.
        q: aspect ratio n/m in (0, 1].
    """
    r = np.sqrt(q)
    sine = r * np.sin(angle)
    return (angle - sine + (1 - q) / q * (np.arctan2(sine, 1 + r * np.cos(angle)) - sine)) / np.pi


def eigenvalue_at(angle: Array, q: float) -> Array:
    """Give lambda(t) for unit variance, over m."""
    return 1 + q + 2 * np.sqrt(q) * np.cos(angle)


def angle_of(eigenvalue: float, q: float) -> float:
    """Give the angle t of an eigenvalue for unit variance, over m; that of the nearer edge outside of the support."""
    return float(np.arccos(np.clip((eigenvalue - 1 - q) / (2 * q**0.5), -1, 1)))


def mp_density(eigenvalues: Array, shape: tuple[int, int], variance: float) -> Array:
    """Give the density of the eigenvalues of W W^T, unnormalised; 0 outside its support. Its mass is 1.

    Args:
        eigenvalues: where, shape [k].
        shape: (rows, cols) of W in either order.
        variance: of the entries of W.
    """
    n, m = sorted(shape)
    low, high = variance * (m**0.5 - n**0.5) ** 2, variance * (m**0.5 + n**0.5) ** 2
    inside = (eigenvalues > low) & (eigenvalues < high)
    x = np.where(inside, eigenvalues, high)
    return np.where(inside, np.sqrt(np.maximum((high - x) * (x - low), 0)) / (2 * np.pi * variance * n * x), 0.0)


@cache
def mp_quantiles(n: int, q: float, n_slices: int = 1) -> Array:
    """Give the typical eigenvalues of real Gaussian matrices, ascending, for unit variance and over m.

    The j-th largest lies where the mean number of eigenvalues above it is j - 1/2. That mean is
    n G(t) + 1/4 - t/(2 pi): the law, and what real matrices add to it (Bai and Silverstein 2004, Annals of
    Probability 32, theorem 1.1, for the indicator of what lies above lambda(t)). Within half an eigenvalue of an edge
    the second term is held to the first, so that the mean runs from 0 to n.

    Args:
        n: rows of each matrix.
        q: aspect ratio n/m in (0, 1].
        n_slices: matrices whose eigenvalues are pooled.

    Returns:
        Shape [n n_slices], read-only.
    """
    total = n * n_slices
    quantiles = eigenvalue_at(_angles((np.arange(total)[::-1] + 0.5) / n_slices, n, q), q)
    quantiles.flags.writeable = False
    return quantiles


@cache
def mp_median(n: int, q: float) -> float:
    """Give the median eigenvalue of a real Gaussian matrix of n rows, for unit variance and over m."""
    return float(eigenvalue_at(_angles(np.array([n / 2]), n, q), q)[0])


def log_density(angle: float, q: float) -> float:
    """Give the density of ln lambda at lambda(t): sin t/(pi sqrt q)."""
    return float(np.sin(angle) / (np.pi * q**0.5))


def count_variance(angle: float, n: int, q: float) -> float:
    """Give the variance of the number of eigenvalues of a real Gaussian matrix above lambda(t), t inside (0, pi).

    (ln(4 pi n g sin t) + gamma + 1 - pi^2/8)/pi^2 with g the density in t. The logarithm at large scale is that of a
    linear statistic, sum_j j a_j^2/2 over the Chebyshev coefficients a_j of the step; it goes over into the number
    variance of the Gaussian orthogonal ensemble, 2/pi^2 (ln 2 pi L + gamma + 1 - pi^2/8) for both ends of L mean
    spacings (Mehta, Random Matrices, 16.1).

    Args:
        angle: t.
        n: rows.
        q: aspect ratio n/m in (0, 1].
    """
    density = 2 * np.sin(angle) ** 2 / (np.pi * (1 + q + 2 * q**0.5 * np.cos(angle)))
    logarithm = np.log(4 * np.pi * n * density * np.sin(angle))
    return float((logarithm + np.euler_gamma + 1 - np.pi**2 / 8) / np.pi**2)


def _angles(counts: Array, n: int, q: float) -> Array:
    """Angles above which these numbers of eigenvalues lie in the mean, by bisection to the last bit."""
    low, high = np.zeros_like(counts), np.full_like(counts, np.pi)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = _mean_count(middle, n, q) < counts
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def _mean_count(angle: Array, n: int, q: float) -> Array:
    law = n * mass_above(angle, q)
    return law + np.clip(0.25 - angle / (2 * np.pi), law - n, law)
