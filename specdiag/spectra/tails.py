"""Power-law exponents of the upper tail of a spectrum.

alpha is a density exponent, p(lambda) ~ lambda^-alpha: the classical Hill index of the survival function is
alpha - 1. All functions take the eigenvalues lambda = sigma^2, ascending, float64, shape [n].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Eigenvalues = NDArray[np.float64]

_FEWEST_FINGERS, _MOST_FINGERS = 2, 9
_FINGER_THRESHOLD = 1.0
_LEAST_ALPHA = 2.0
"""WeightWatcher's `max_fingers` of 10, `finger_thresh` and `min_alpha`. It never leaves out one eigenvalue alone."""


class Tail(NamedTuple):
    """A fitted tail.

    Attributes:
        alpha: the exponent.
        k: its number of points.
        xmin: its threshold.
        ks: its Kolmogorov-Smirnov distance.
        lead: at least how much larger the distance is of every other threshold that was tried; infinite without one.
        n_clipped: number of the largest eigenvalues that are left out, the k points being those before them; None for a
            rule that has no such choice.
    """

    alpha: float
    k: int
    xmin: float
    ks: float
    lead: float = np.inf
    n_clipped: int | None = None


def hill(eigenvalues: Eigenvalues, tail_fraction: float = 0.5) -> Tail:
    """PL_Alpha_Hill as the AlphaDecay code computes it (its `pl_fitting="median"` at tail fraction 1/2).

    alpha = 1 + k / (sum_{j >= i0} ln lambda[j] - k ln lambda[i0]), i0 = floor(n (1 - f)), k = n - i0: the threshold
    is itself one of the k. Returns alpha = inf where all k eigenvalues are equal.

    Args:
        eigenvalues: positive from the threshold up.
        tail_fraction: f, the share of the eigenvalues taken as the tail, in (0, 1).

    Source: AlphaDecay (arXiv 2506.14562), released code; equation 2 of the paper is `hill_paper`.
    """
    n = len(eigenvalues)
    i0 = int(n * (1 - tail_fraction) + 1e-9)
    return _fit(eigenvalues, min(i0, n - 1))


def hill_paper(eigenvalues: Eigenvalues, tail_fraction: float = 0.5) -> Tail:
    """PL_Alpha_Hill by equation 2 of the AlphaDecay paper, whose threshold is the (k+1)-th largest eigenvalue.

    alpha = 1 + k / sum_{i=1..k} ln(lambda_(n-i+1) / lambda_(n-k)), k = floor(n f). The exponent lies about
    (alpha - 1)/k below `hill` and its threshold one order statistic lower.
    """
    n = len(eigenvalues)
    k = min(max(int(n * tail_fraction + 1e-9), 1), n - 1)
    xmin = float(eigenvalues[n - k - 1])
    excess = float(np.log(eigenvalues[n - k :] / xmin).sum())
    alpha = 1 + k / excess if excess > 0 else np.inf
    return Tail(alpha, k, xmin, _distance(eigenvalues[n - k :], xmin, alpha))


def ks_optimal(eigenvalues: Eigenvalues) -> Tail:
    """The power law whose threshold minimises the KS distance (Clauset, Shalizi, Newman 2009): WeightWatcher's alpha.

    Every eigenvalue but the largest is a candidate. The exact minimum over all of them, found by visiting candidates
    in order of a lower bound of their distance (its value at 64 points of the tail) until the bound passes the best.

    Args:
        eigenvalues: all positive, at least two.
    """
    return _best(eigenvalues, 0, len(eigenvalues) - 1)


def fix_finger(eigenvalues: Eigenvalues, *, compat: bool = False) -> Tail:
    """KS-optimal power law with the threshold held near the peak of the density of log10 lambda.

    The peak is the left edge of the fullest of 100 equal bins; candidates lie in [0.95 peak, 1.5 peak].

    Args:
        eigenvalues: all positive, at least two.
        compat: compare the raw eigenvalues with log10(0.95 peak), as AlphaPruning, FARMS and AlphaDecay do: the
            lower bound is then nearly always empty. It changes numbers.
    """
    logs = np.log10(eigenvalues)
    counts, edges = np.histogram(logs, bins=100)
    peak = 10 ** edges[counts.argmax()]
    low = np.log10(0.95 * peak) if compat else 0.95 * peak
    first = int(np.searchsorted(eigenvalues, low, side="right" if compat else "left"))
    last = int(np.searchsorted(eigenvalues, 1.5 * peak, side="left" if compat else "right"))
    last = min(last, len(eigenvalues) - 1)
    return _best(eigenvalues, min(first, last - 1), last)


def clip_xmax(eigenvalues: Eigenvalues) -> Tail:
    """KS-optimal power law without the few largest eigenvalues where these raise its exponent: WeightWatcher's rule.

    The largest 2, 3, ..., 9 are left out in turn. The first of these fits whose exponent is more than 1 below that of
    all eigenvalues is taken. Where there is none before one of at most 2, nothing is left out.

    Args:
        eigenvalues: all positive, more than a few.

    Source: WeightWatcher 0.7.7, `fix_fingers="clip_xmax"` with its defaults.
    """
    whole = ks_optimal(eigenvalues)
    for n_clipped in range(_FEWEST_FINGERS, _MOST_FINGERS + 1):
        fit = ks_optimal(eigenvalues[:-n_clipped])
        if fit.alpha + _FINGER_THRESHOLD < whole.alpha:
            return fit._replace(n_clipped=n_clipped)
        if fit.alpha <= _LEAST_ALPHA:
            break
    return whole._replace(n_clipped=0)


def _fit(eigenvalues: Eigenvalues, i0: int) -> Tail:
    tail = eigenvalues[i0:]
    k, xmin = len(tail), float(tail[0])
    excess = float(np.log(tail / xmin).sum())
    alpha = 1 + k / excess if excess > 0 else np.inf
    return Tail(alpha, k, xmin, _distance(tail, xmin, alpha))


def _distance(tail: Eigenvalues, xmin: float, alpha: float) -> float:
    """KS distance on one side, max_j |1 - (lambda_j/xmin)^(1 - alpha) - j/k|, the convention of both references."""
    if not np.isfinite(alpha):
        return 1.0
    model = 1 - (tail / xmin) ** (1 - alpha)
    return float(np.abs(model - np.arange(len(tail)) / len(tail)).max())


def _best(eigenvalues: Eigenvalues, first: int, last: int) -> Tail:
    """The tail of least KS distance among thresholds eigenvalues[first:last]; the first on ties."""
    n = len(eigenvalues)
    logs = np.log(eigenvalues / eigenvalues[-1])
    starts = np.arange(first, last)
    counts = n - starts
    suffix = np.cumsum(logs[::-1])[::-1]
    excess = suffix[first:last] - counts * logs[first:last]
    usable = excess > 0
    if not usable.any():
        return Tail(np.inf, n - first, float(eigenvalues[first]), 1.0)
    starts, counts, slopes = starts[usable], counts[usable], counts[usable] / excess[usable]

    steps = (np.linspace(0, 1, 64)[:, None] * (counts - 1)).astype(np.intp)
    bounds = np.abs(1 - np.exp(-slopes * (logs[starts + steps] - logs[starts])) - steps / counts).max(axis=0)

    best, second, chosen = np.inf, np.inf, 0
    for c in np.argsort(bounds, kind="stable"):
        if bounds[c] > best:
            second = min(second, float(bounds[c]))
            break
        start = starts[c]
        k = int(counts[c])
        model = 1 - np.exp(-slopes[c] * (logs[start:] - logs[start]))
        distance = float(np.abs(model - np.arange(k) / k).max())
        second = min(second, max(distance, best))
        if distance < best or (distance == best and start < starts[chosen]):
            best, chosen = distance, c
    start = int(starts[chosen])
    return Tail(float(1 + slopes[chosen]), int(counts[chosen]), float(eigenvalues[start]), best, second - best)
