"""What noise scores: the exponent that a tail rule gives to a random matrix of the same shape.

The eigenvalues of W W^T/m for an n x m matrix (n <= m, q = n/m) with iid entries of variance 1 follow the
Marchenko-Pastur law on [(1 - sqrt q)^2, (1 + sqrt q)^2]. A tail fraction of it has a finite exponent that depends on
q alone: 2.12 for a square matrix, 3.45 at 1:4. Two modules of different shapes differ by that much having learned
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.tails import Tail

SQUARE_LIMIT = 2.1216802825
"""alpha of an infinite square random matrix at tail fraction 1/2."""


def mp_cdf_from_top(t: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """Mass of the Marchenko-Pastur law above lambda(t) = 1 + q + 2 sqrt(q) cos t, t in [0, pi].

    The density in t, 2 sin^2 t/(pi lambda(t)), has a closed antiderivative; with r = sqrt q:
    pi G(t) = t - r sin t + (1 - r^2)/r^2 (arg(1 + r e^(it)) - r sin t).
    """
    r = np.sqrt(q)
    sine = r * np.sin(t)
    return (t - sine + (1 - q) / q * (np.arctan2(sine, 1 + r * np.cos(t)) - sine)) / np.pi


def _eigenvalue(t: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    return 1 + q + 2 * np.sqrt(q) * np.cos(t)


def _angles(mass: NDArray[np.float64], q: float) -> NDArray[np.float64]:
    """Where `mp_cdf_from_top` takes these values, by bisection to the last bit."""
    low, high = np.zeros_like(mass), np.full_like(mass, np.pi)
    for _ in range(54):
        middle = (low + high) / 2
        above = mp_cdf_from_top(middle, q) < mass
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return (low + high) / 2


def mp_density(eigenvalues: NDArray[np.float64], shape: tuple[int, int], variance: float) -> NDArray[np.float64]:
    """The Marchenko-Pastur density of eigenvalues of W W^T, unnormalised; 0 outside its support. Its mass is 1.

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
def mp_quantiles(n: int, q: float) -> NDArray[np.float64]:
    """The n quantiles of the Marchenko-Pastur law at (j + 1/2)/n, ascending, for unit variance and lambda/m.

    Args:
        n: how many.
        q: aspect ratio n/m in (0, 1].
    """
    quantiles = _eigenvalue(_angles((np.arange(n)[::-1] + 0.5) / n, q), q)
    quantiles.flags.writeable = False
    return quantiles


def alpha_null(fit: Callable[[NDArray[np.float64]], Tail], shape: tuple[int, int], n_slices: int = 1) -> float:
    """The exponent of a random matrix of this shape under the rule `fit`.

    Within 0.5 % of simulation at tail fraction 1/2 and n >= 50, within 1.5 % at others and for pooled slices.

    Args:
        fit: a tail rule, such as `tails.hill`.
        shape: (rows, cols) in either order.
        n_slices: matrices of that shape whose eigenvalues are pooled.
    """
    n, m = sorted(shape)
    return fit(mp_quantiles(n * n_slices, n / m)).alpha


@cache
def mp_alpha(q: float) -> float:
    """Hill exponent at tail fraction 1/2 of an infinite random matrix of aspect ratio q = n/m <= 1."""
    t0 = float(_angles(np.array([0.5]), q)[0])
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t = t0 * (nodes + 1) / 2
    value, median = _eigenvalue(t, q), _eigenvalue(np.array(t0), q)
    excess = 2 * np.sin(t) ** 2 / (np.pi * value) * np.log(value / median)
    return 1 + 0.5 / float(t0 / 2 * (weights * excess).sum())


@cache
def mp_median(q: float) -> float:
    """Median of the Marchenko-Pastur law for unit variance, lambda/m."""
    return float(_eigenvalue(_angles(np.array([0.5]), q), q)[0])


def alpha_null_square(n: int) -> float:
    """Hill exponent of pooled random n x n windows at tail fraction 1/2: the limit and its finite-size correction."""
    return SQUARE_LIMIT + _table()["mean_shift"][0] / n


def square_null_sd(shape: tuple[int, int]) -> float:
    """Standard deviation of alpha_square over random matrices of this shape, its windows taken as independent."""
    n, m = sorted(shape)
    return _table()["sd_scale"][0] / n / (-(-m // n)) ** 0.5


def z_score(alpha: float, shape: tuple[int, int]) -> float | None:
    """(alpha - mean)/sd of `hill` at tail fraction 1/2 over random matrices of this shape.

    Mean and standard deviation come from the shipped simulation (`benchmarks/null_table.py`): limit + c(q)/n and
    d(q)/n. None outside the shapes that it covers: n >= 64 and aspect ratios from 1:1 to 1:64.
    """
    moments = null_moments(shape)
    return None if moments is None else (alpha - moments[0]) / moments[1]


def null_moments(shape: tuple[int, int]) -> tuple[float, float] | None:
    """Mean and standard deviation of the Hill exponent over random matrices of this shape, None where not covered."""
    n, m = sorted(shape)
    table = _table()
    log_aspect = np.log(m / n)
    known = np.log(table["aspect"])
    if n < 64 or log_aspect > known[-1] + 1e-9:
        return None
    shift = float(np.interp(log_aspect, known, table["mean_shift"]))
    sd = float(np.interp(log_aspect, known, table["sd_scale"]))
    return mp_alpha(n / m) + shift / n, sd / n


@cache
def _table() -> dict[str, list[float]]:
    return json.loads(resources.files("specdiag.spectra").joinpath("null_table.json").read_text())
