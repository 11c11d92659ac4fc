"""Scalar metrics of a spectrum. Names are WeightWatcher's where the meaning is the same; log is log10.

All take eigenvalues lambda = sigma(W)^2, ascending, float64, of which the last is positive.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.marchenko_pastur import angle_of, count_variance, log_density, mp_median

Eigenvalues = NDArray[np.float64]

_TRACY_WIDOM_MEAN, _TRACY_WIDOM_SD = -1.2065, 1.2680
_TRACY_WIDOM_THOUSANDTH = 3.2724
"""Mean, standard deviation and upper .1 % point of the Tracy-Widom law for real matrices, beta = 1."""


def stable_rank(eigenvalues: Eigenvalues) -> float:
    """||W||_F^2 / sigma_max^2."""
    return float(eigenvalues.sum() / eigenvalues[-1])


def effective_rank(eigenvalues: Eigenvalues) -> float:
    """exp of the Shannon entropy of sigma/sum(sigma) (Roy and Vetterli 2007)."""
    sigma = np.sqrt(eigenvalues if eigenvalues[0] > 0 else eigenvalues[eigenvalues > 0])
    p = sigma / sigma.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def entropy(eigenvalues: Eigenvalues, rank: int) -> float | None:
    """-sum p ln p / ln rank with p = lambda/sum(lambda) + 1e-10, as WeightWatcher; None for rank 1."""
    if rank < 2:
        return None
    p = eigenvalues / eigenvalues.sum() + 1e-10
    return float(-(p * np.log(p)).sum() / np.log(rank))


def log_alpha_norm(eigenvalues: Eigenvalues, alpha: float) -> float:
    """log10 of sum lambda^alpha over all eigenvalues, by log-sum-exp: large exponents do not overflow."""
    positive = eigenvalues[eigenvalues > 0]
    logs = alpha * np.log10(positive)
    top = float(logs[-1])
    return top + float(np.log10((10 ** (logs - top)).sum()))


def detx_k(eigenvalues: Eigenvalues) -> int:
    """How many of the largest eigenvalues, scaled to mean 1, it takes for their product to fall below 1.

    WeightWatcher's `detX_num` (the SETOL trace-log condition), the crossing eigenvalue counted; by sums of logs, where
    WeightWatcher's products overflow from about 3000 eigenvalues on.
    """
    below = _log_products(eigenvalues) < 0
    first = int(below.argmax())
    return first + 1 if below[first] else len(eigenvalues)


def is_detx_certain(eigenvalues: Eigenvalues, noise: float) -> bool:
    """Tell whether `detx_k` stays the same when each eigenvalue moves by as much as `noise`.

    Args:
        eigenvalues: a spectrum.
        noise: absolute error of each.
    """
    products = _log_products(eigenvalues)
    relative = noise / np.maximum(eigenvalues[::-1], noise) + noise / eigenvalues.mean()
    last = detx_k(eigenvalues) - 1
    around = slice(max(last - 1, 0), last + 1)
    return bool((np.abs(products[around]) > relative.cumsum()[around]).all())


def _log_products(eigenvalues: Eigenvalues) -> Eigenvalues:
    """Logarithms of the products of the largest eigenvalues, scaled to mean 1."""
    scaled = eigenvalues / (eigenvalues.sum() / len(eigenvalues))  # at half the time of `mean`, which few values show
    return np.log(np.maximum(scaled[::-1], sys.float_info.min)).cumsum()


def mp_edge(eigenvalues: Eigenvalues, shape: tuple[int, int]) -> float:
    """Give the upper Marchenko-Pastur edge of the bulk, s^2 (sqrt n + sqrt m)^2.

    s^2 is set so that the median is that of noise (`mp_median`): spikes do not move it. WeightWatcher fits it to a
    kernel density instead, so its values differ.

    Args:
        eigenvalues: of one matrix, or pooled ones of slices of one shape.
        shape: (rows, cols) in either order.
    """
    n, m = sorted(shape)
    # np.median of sorted values, at a tenth of its time for few of them.
    median = float(eigenvalues[(len(eigenvalues) - 1) // 2] + eigenvalues[len(eigenvalues) // 2]) / 2
    variance = median / (m * mp_median(n, n / m))
    return variance * (n**0.5 + m**0.5) ** 2


def mp_spikes(eigenvalues: Eigenvalues, shape: tuple[int, int], edge: float) -> int:
    """Count the eigenvalues above what the largest one of noise exceeds once in a thousand matrices.

    The largest eigenvalue of a real Gaussian matrix is s^2 (mu + sigma TW), TW of the Tracy-Widom law:
    mu = (sqrt(n - 1/2) + sqrt(m - 1/2))^2 and
    sigma = (sqrt(n - 1/2) + sqrt(m - 1/2)) (1/sqrt(n - 1/2) + 1/sqrt(m - 1/2))^(1/3), n^(-2/3) of mu at one aspect
    ratio (Johnstone 2001, Annals of Statistics 29; halves: Ma 2012, Bernoulli 18). s^2 comes from the median, which
    varies too (`count_variance`): its relative deviation times mu is added to the standard deviation in squares.

    Args:
        eigenvalues: of one matrix, or pooled ones of slices of one shape.
        shape: (rows, cols) in either order.
        edge: `mp_edge` of them.
    """
    return int(np.count_nonzero(eigenvalues > spike_bound(shape, edge)))


def spike_bound(shape: tuple[int, int], edge: float) -> float:
    """Give the eigenvalue above which one is a spike (`mp_spikes`).

    Args:
        shape: (rows, cols) in either order.
        edge: `mp_edge` of the spectrum.
    """
    n, m = sorted(shape)
    return edge / (n**0.5 + m**0.5) ** 2 * _largest_of_noise(n, m)


@cache
def _largest_of_noise(n: int, m: int) -> float:
    """Bound that the largest eigenvalue of noise of variance 1 exceeds once in a thousand matrices."""
    a, b = (n - 0.5) ** 0.5, (m - 0.5) ** 0.5
    center, scale = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    spread = float(np.hypot(_TRACY_WIDOM_SD, center / scale * _median_deviation(n, n / m)))
    deviations = (_TRACY_WIDOM_THOUSANDTH - _TRACY_WIDOM_MEAN) / _TRACY_WIDOM_SD
    return center + scale * (_TRACY_WIDOM_MEAN + deviations * spread)


def _median_deviation(n: int, q: float) -> float:
    """Relative standard deviation of the median eigenvalue of noise."""
    angle = angle_of(mp_median(n, q), q)
    return max(count_variance(angle, n, q), 0.0) ** 0.5 / (n * log_density(angle, q))
