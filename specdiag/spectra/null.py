"""Exponents of noise: mean and standard deviation of a Hill exponent over random matrices of one shape.

A tail fraction of the Marchenko-Pastur law has a finite exponent that depends on the aspect ratio alone: 2.12 for a
square matrix, 3.45 at 1:4. Two modules of different shapes differ by that much having learned nothing.

Both moments are closed forms for real Gaussian matrices; nothing is fitted. alpha - 1 = k/T with T the sum of
ln(lambda/threshold) over the tail. To first order T is a linear statistic, and its variance follows from Chebyshev
coefficients (Bai and Silverstein 2004, Annals of Probability 32). The threshold is one eigenvalue. It moves with the
number of eigenvalues above a point, whose variance grows as ln n/pi^2. So n sd(alpha) = sqrt(a + b ln n), with a and b
functions of aspect ratio and tail fraction. `benchmarks/null_moments.py` holds both moments against simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.marchenko_pastur import angle_of, count_variance, eigenvalue_at, log_density, mp_quantiles
from specdiag.spectra.tails import Tail, hill

Fit = Callable[[NDArray[np.float64]], Tail]

_ORDERS = 128
"""Chebyshev coefficients of ln(lambda/threshold) that are summed. They fall as j^-2 and their variance as j^-3."""


def alpha_null(fit: Fit, shape: tuple[int, int], n_slices: int = 1) -> float:
    """Give the mean exponent of random matrices of this shape under a Hill rule.

    Args:
        fit: a Hill rule, such as `tails.hill`.
        shape: (rows, cols) in either order.
        n_slices: matrices of that shape whose eigenvalues are pooled.
    """
    return null_moments(shape, fit, n_slices)[0]


def z_score(alpha: float, shape: tuple[int, int], fit: Fit = hill) -> float:
    """Give (alpha - mean)/sd of a Hill rule over random matrices of this shape.

    Args:
        alpha: the exponent by that rule.
        shape: (rows, cols) in either order.
        fit: the rule; by default `hill` at tail fraction 1/2.
    """
    mean, sd = null_moments(shape, fit)
    return (alpha - mean) / sd


def null_moments(shape: tuple[int, int], fit: Fit = hill, n_slices: int = 1) -> tuple[float, float]:
    """Give mean and standard deviation of a Hill exponent over random matrices of one shape.

    The mean is the exponent a of typical eigenvalues (`mp_quantiles`) and the second order of k/T, a + sd^2/(a - 1).

    Args:
        shape: (rows, cols) in either order.
        fit: a Hill rule; by default `hill` at tail fraction 1/2.
        n_slices: matrices of that shape whose eigenvalues are pooled.

    Returns:
        Both; the standard deviation is infinite where the tail holds less than one eigenvalue a slice.
    """
    n, m = sorted(shape)
    tail = fit(mp_quantiles(n, n / m, n_slices))
    if tail.k < n_slices or not np.isfinite(tail.alpha):
        return tail.alpha, float("inf")
    variance = _sum_variance(n, n / m, n_slices, tail.k, angle_of(tail.xmin, n / m))
    sd = (tail.alpha - 1) ** 2 / tail.k * variance**0.5
    return tail.alpha + sd**2 / (tail.alpha - 1), sd


@cache
def _sum_variance(n: int, q: float, n_slices: int, k: int, threshold: float) -> float:
    """Variance of the sum of ln(lambda/threshold) over the k largest eigenvalues, the threshold an angle.

    The threshold moves by d ln lambda = dN/(n s rho), s slices, rho the density of ln lambda, and the sum by -k times
    that, where dN is the deviation of the number of eigenvalues above a fixed point. An order statistic moves
    continuously: Sheppard's correction takes 1/12 from the variance of the integer N.
    """
    weight = k / (n * n_slices * log_density(threshold, q))
    variance, covariance = _log_statistic(q, threshold)
    slice_variance = variance - 2 * weight * covariance + weight**2 * count_variance(threshold, n, q)
    return n_slices * slice_variance - weight**2 / 12


def _log_statistic(q: float, threshold: float) -> tuple[float, float]:
    """Variance of the sum of max(ln(lambda/threshold), 0) over one matrix, and its covariance with the number above.

    Over j = 1, 2, ... they are the sums of j f_j^2/2 and j f_j s_j/2 (`log_and_step`).
    """
    logarithm, step = log_and_step(q, threshold)
    j = np.arange(1, _ORDERS + 1)
    return float((j * logarithm**2).sum() / 2), float((j * logarithm * step).sum() / 2)


@cache
def log_and_step(q: float, threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the Chebyshev coefficients of max(ln(lambda/threshold), 0) and of the step at the threshold, j = 1, 2, ...

    Those of the step are s_j = 2 sin(j t)/(pi j) at the threshold t, and those of the logarithm, by parts,
    f_j = 2/(pi j) times the integral of -d ln lambda/dt sin(j t) from 0 to the threshold.

    Args:
        q: aspect ratio n/m in (0, 1].
        threshold: an angle.
    """
    nodes, weights = np.polynomial.legendre.leggauss(2 * _ORDERS)
    t = threshold * (nodes + 1) / 2
    slopes = threshold / 2 * weights * 2 * np.sqrt(q) * np.sin(t) / eigenvalue_at(t, q)
    j = np.arange(1, _ORDERS + 1)
    return 2 / (np.pi * j) * (np.sin(np.outer(j, t)) @ slopes), 2 / (np.pi * j) * np.sin(j * threshold)
