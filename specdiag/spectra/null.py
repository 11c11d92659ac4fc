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


@cache
def mp_quantiles(n: int, q: float) -> NDArray[np.float64]:
    """The n quantiles of the Marchenko-Pastur law at (j + 1/2)/n, ascending, for unit variance and lambda/m.

    Args:
        n: how many.
        q: aspect ratio n/m in (0, 1].
    """
    mass = (np.arange(n)[::-1] + 0.5) / n
    low, high = np.zeros(n), np.full(n, np.pi)
    for _ in range(54):
        middle = (low + high) / 2
        above = mp_cdf_from_top(middle, q) < mass
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    quantiles = 1 + q + 2 * np.sqrt(q) * np.cos((low + high) / 2)
    quantiles.flags.writeable = False
    return quantiles


def alpha_null(fit: Callable[[NDArray[np.float64]], Tail], shape: tuple[int, int], n_slices: int = 1) -> float:
    """The exponent of a random matrix of this shape under the rule `fit` (within 0.5 % of simulation).

    Args:
        fit: a tail rule, such as `tails.hill`.
        shape: (rows, cols) in either order.
        n_slices: matrices of that shape whose eigenvalues are pooled.
    """
    n, m = sorted(shape)
    return fit(np.repeat(mp_quantiles(n, n / m), n_slices)).alpha


def mp_alpha(q: float) -> float:
    """Hill exponent at tail fraction 1/2 of an infinite random matrix of aspect ratio q = n/m <= 1."""
    from scipy.integrate import quad
    from scipy.optimize import brentq

    r = float(np.sqrt(q))
    t0 = float(brentq(lambda t: mp_cdf_from_top(np.asarray(t), q) - 0.5, 0.0, np.pi, xtol=1e-14))
    median = 1 + q + 2 * r * np.cos(t0)

    def excess(t: float) -> float:
        value = 1 + q + 2 * r * np.cos(t)
        return 2 * np.sin(t) ** 2 / (np.pi * value) * np.log(value / median)

    return 1 + 0.5 / quad(excess, 0, t0, epsabs=1e-13)[0]


def mp_median(q: float) -> float:
    """Median of the Marchenko-Pastur law for unit variance, lambda/m."""
    return float(np.median(mp_quantiles(4097, q)))


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
    return _mp_alpha_cached(n / m) + shift / n, sd / n


@cache
def _mp_alpha_cached(q: float) -> float:
    return mp_alpha(q)


@cache
def _table() -> dict[str, list[float]]:
    return json.loads(resources.files("specdiag.spectra").joinpath("null_table.json").read_text())
