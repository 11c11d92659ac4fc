"""The power law with an exponential cut-off: its likeliest parameters, and the logarithm of its density.

p(x) ~ x^-alpha e^(-rate x) for x >= xmin, with alpha >= 1 and rate >= 0. At rate 0 it is the power law. With
u = x/xmin, a = alpha - 1 and b = rate xmin its norm is the integral of e^(-a y - b (e^y - 1)) over y = ln u >= 0, which
is e^b b^a Gamma(-a, b). The recurrences of that function lose their digits near whole a; the integral does not. The law
is an exponential family: its likeliest parameters give ln u and u - 1 the means that the points have.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.roots import root

Array = NDArray[np.float64]

_NODES = 256
_DEPTH = 45.0
"""Where the integrand has fallen to e^-45 of its start, it ends."""
_NO_CUTOFF = 1e-12
"""Smallest b u of the largest point at which a cut-off shows."""


class Moments(NamedTuple):
    """Moments of u = x/xmin: the logarithm of the norm, and the means of ln u and u - 1."""

    log_norm: float
    log: float
    excess: float


def moments(a: float, b: float) -> Moments:
    """Integrate over the law, to about 1e-10 of each value.

    Args:
        a: alpha - 1, at least 0.
        b: rate times xmin, above 0.
    """
    end = float(np.log1p(_DEPTH / b))
    end = min(end, _DEPTH / (a - 1)) if a > 1 else end
    nodes, weights = _gauss()
    y = end * nodes
    u = np.expm1(y)
    mass = end * weights * np.exp(-a * y - b * u)
    norm = float(mass.sum())
    return Moments(float(np.log(norm)), float(mass @ y) / norm, float(mass @ u) / norm)


def fit(logs: Array, excess: Array) -> tuple[float, float]:
    """Give the likeliest (alpha, rate xmin).

    Args:
        logs: ln(x/xmin), at least 0 and not all 0.
        excess: x/xmin - 1.
    """
    mean_log, mean_excess = float(logs.mean()), float(excess.mean())
    least = _NO_CUTOFF / (1 + float(excess.max()))

    def lack(a: float) -> float:
        """Slope of the likelihood in a, where b is the best for it."""
        b = _rate(a, mean_excess, least)
        return (moments(a, b).log if b else 1 / a) - mean_log

    pure = 1 / mean_log
    if _rate(pure, mean_excess, least) == 0:
        return 1 + pure, 0.0
    a = 0.0 if lack(0.0) <= 0 else root(lack, 0.0, pure)
    return 1 + a, _rate(a, mean_excess, least)


def log_density(logs: Array, excess: Array, alpha: float, b: float) -> Array:
    """Give ln of the density of u = x/xmin.

    Args:
        logs: ln u.
        excess: u - 1.
        alpha: at least 1; above 1 where b is 0.
        b: rate times xmin.
    """
    log_norm = moments(alpha - 1, b).log_norm if b else -float(np.log(alpha - 1))
    return -alpha * logs - b * excess - log_norm


def _rate(a: float, mean_excess: float, least: float) -> float:
    """The b that gives u - 1 its mean at this a; 0 where that is below `least`."""
    if (a > 1 and 1 / (a - 1) <= mean_excess) or moments(a, least).excess <= mean_excess:
        return 0.0
    # e^(-b u) alone has the mean 1/b; what falls faster has a smaller one.
    ends = (float(np.log(least)), float(np.log(2 / mean_excess)))
    return float(np.exp(root(lambda t: moments(a, float(np.exp(t))).excess - mean_excess, *ends)))


@cache
def _gauss() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, weights / 2
