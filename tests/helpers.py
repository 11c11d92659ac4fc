"""Matrices with known properties, and naive references that share no code with the library."""

from __future__ import annotations

import numpy as np

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
