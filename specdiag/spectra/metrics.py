"""Scalar metrics of a spectrum. Names are WeightWatcher's where the meaning is the same; log is log10.

All take eigenvalues lambda = sigma(W)^2, ascending, float64, of which the last is positive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.null import mp_median

Eigenvalues = NDArray[np.float64]


def stable_rank(eigenvalues: Eigenvalues) -> float:
    """||W||_F^2 / sigma_max^2."""
    return float(eigenvalues.sum() / eigenvalues[-1])


def effective_rank(eigenvalues: Eigenvalues) -> float:
    """exp of the Shannon entropy of sigma/sum(sigma) (Roy and Vetterli 2007)."""
    sigma = np.sqrt(eigenvalues[eigenvalues > 0])
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
    scaled = eigenvalues / eigenvalues.mean()
    sums = np.cumsum(np.log(np.maximum(scaled[::-1], np.finfo(np.float64).tiny)))
    below = np.flatnonzero(sums < 0)
    return int(below[0]) + 1 if len(below) else len(eigenvalues)


def mp_edge(eigenvalues: Eigenvalues, shape: tuple[int, int]) -> float:
    """Upper Marchenko-Pastur edge of the bulk, sigma^2 (sqrt n + sqrt m)^2.

    sigma^2 is set so that the law's median is the spectrum's (`sigma_med`): spikes do not move it. WeightWatcher fits
    it to a kernel density instead, so its values differ.
    """
    n, m = sorted(shape)
    variance = float(np.median(eigenvalues)) / (m * mp_median(n / m))
    return variance * (n**0.5 + m**0.5) ** 2


def mp_spikes(eigenvalues: Eigenvalues, shape: tuple[int, int], edge: float) -> int:
    """Eigenvalues above the edge by more than its Tracy-Widom width (WeightWatcher's `num_spikes` rule)."""
    n, m = sorted(shape)
    mean = float(eigenvalues.mean())
    width = mean * ((n / m) ** 0.5 * (edge / mean) ** (2 / 3) * n ** (-2 / 3)) ** 0.5
    return int(np.count_nonzero(eigenvalues > edge + width))
