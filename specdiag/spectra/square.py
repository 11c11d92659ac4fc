"""Alpha of a square cut: comparable across shapes, from eigenvalues and shape alone.

The exponent of noise depends on the aspect ratio (`null`), and so does that of structure: dividing one by the other
over-corrects. `square_alpha` is the Hill exponent at tail fraction 1/2 of the spectrum that W would have with its long
side rotated at random and cut to as many columns as it has rows (`compression`). One row covariance scores the same
at 1:1 and at 1:32, and no order of rows or columns matters. What the long side alone has of structure, such as
columns of very unequal norm, is rotated away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.records import SquareStatus
from specdiag.spectra.compression import Array, Cut, upper_mean
from specdiag.spectra.marchenko_pastur import count_variance, log_density
from specdiag.spectra.null import log_and_step

SQUARE_NULL = 2.1216802825
"""square_alpha of random matrices of any shape, in the limit: that of the square Marchenko-Pastur law."""

_SHARE = 0.5

_MEDIAN = 2.3098814600100575
"""Angle of the median of that law, t - sin t = pi/2 (`marchenko_pastur`)."""
_SLOPE = -((SQUARE_NULL - 1) ** 2) / _SHARE
"""d alpha/dI of alpha = 1 + 1/(2 I)."""
_SPACING = 0.286
"""Variance of the spacing of neighbours in the Gaussian orthogonal ensemble, in mean spacings (Mehta)."""
NO_SQUARE: dict[SquareStatus | None, str] = {
    "low_rank": "the upper half of its eigenvalues, or of its square cut's, reaches down to storage noise",
    "degenerate": "the upper half of its eigenvalues is one value to storage precision",
    "too_few": "its living part has fewer than 50 eigenvalues",
    "imprecise": "rounding could move it by more than 1e-4 of its value",
    "update": "it is the update of an adapter, whose rank is low",
    "product": "it is a product of two matrices",
}
"""Why a matrix has no square_alpha, as the end of a sentence."""


class CutFit(NamedTuple):
    """A Hill exponent of a cut, and the threshold above which its tail lies, an eigenvalue of the cut."""

    alpha: float
    threshold: float


def cut_alpha(slices: NDArray[np.float64], columns: int, aspect: float = 1.0) -> CutFit:
    """Fit the Hill exponent at tail fraction 1/2 of a matrix that is cut to another aspect ratio.

    With n' = round(aspect n) columns, alpha = 1 + f/I, f = n/(2 n') and I the integral of S(x) d ln x above the
    threshold S(x_f) = f, where S is the share of the n' eigenvalues above x, averaged over slices. A matrix that has
    no more columns than that is the limit of the same functional: the threshold is the middle eigenvalue of an odd
    number, and the geometric mean of the two middle ones of an even number.

    Args:
        slices: eigenvalues of W W^T of each slice, ascending, not negative, shape [s, n].
        columns: m, the longer side of each slice, at least n.
        aspect: columns of the cut over its rows, from 1 to m/n.

    Returns:
        The exponent, infinite where all eigenvalues of the tail are equal, and 1 where half of them or more are zero;
        and the threshold.

    Raises:
        ValueError: if the aspect is below 1 or the cut would be wider than the matrix.
    """
    n = slices.shape[1]
    kept = round(aspect * n)
    if not n <= kept <= columns:
        raise ValueError(f"an aspect of {aspect:g} is outside 1 to {columns / n:.6g}, the aspect of {n} x {columns}")
    if np.count_nonzero(slices) <= slices.size // 2:
        return CutFit(1.0, 0.0)
    scale = float(slices.mean())
    if kept == columns:
        share, (threshold, excess) = _SHARE, _uncut(np.sort(slices, axis=None) / scale)
    else:
        share = _SHARE * n / kept
        cuts = [Cut(row / scale, columns, kept / columns) for row in slices if row[-1] > 0]
        there = len(cuts) / len(slices)
        threshold, excess = upper_mean(cuts, share / there)
        excess *= there
    return CutFit(1 + share / excess if excess > 0 else float("inf"), threshold * scale)


def _uncut(values: Array) -> tuple[float, float]:
    """Threshold and integral of S d ln x above it for eigenvalues that are not cut."""
    half = len(values) // 2
    upper = values[half + len(values) % 2 :]
    threshold = float(values[half]) if len(values) % 2 else float(values[half - 1] * values[half]) ** 0.5
    if threshold <= 0:
        return 0.0, float("inf")
    return threshold, float(np.log(upper / threshold).sum()) / len(values)


def square_null(shape: tuple[int, int]) -> float:
    """Give the mean of square_alpha over random matrices: for large n 2.1217, less .58/n at 1:1 and .18/n at 1:4.

    Real matrices have arg(1/(1 - q e^(2it)))/(2 pi) more eigenvalues above the angle t of the cut's law than n times
    its mass, q = n/m (Bai and Silverstein 2004; at 1:1 that is 1/4 - t/(2 pi)). They move I. The second order of 1/I
    adds sd^2/(alpha - 1).

    Args:
        shape: (rows, cols) in either order.
    """
    n, m = sorted(shape)
    q = n / m
    logarithm, _ = log_and_step(1.0, _MEDIAN)
    j = np.arange(1, len(logarithm) // 2 + 1)
    more = -float(np.angle(_damping(q))) / (2 * np.pi)
    moved = float(q**j @ logarithm[1::2]) / 2 - _weight() * more
    return SQUARE_NULL + _SLOPE * moved / n + square_sd(shape) ** 2 / (SQUARE_NULL - 1)


def square_sd(shape: tuple[int, int]) -> float:
    """Give the standard deviation of square_alpha over random matrices, .83/n at 1:2 and .38/n at 1:4.

    n I is a linear statistic and the number above the threshold (`null`), whose Chebyshev coefficients the compression
    damps by q^(j/2), q = n/m.

    Args:
        shape: (rows, cols) in either order.
    """
    n, m = sorted(shape)
    q = n / m
    logarithm, step = log_and_step(1.0, _MEDIAN)
    j = np.arange(1, len(step) + 1)
    variance = float((j * q**j * logarithm) @ (logarithm / 2 - _weight() * step)) + _weight() ** 2 * _counts(n, m)
    return -_SLOPE * variance**0.5 / n


def _weight() -> float:
    """Give the loss of n I for each eigenvalue more above the median."""
    return _SHARE / log_density(_MEDIAN, 1.0)


def _damping(q: float) -> complex:
    """Give 1 - q e^(2it) at the median: its argument tells the mean of n S, its size the variance."""
    return complex(1 - q * np.exp(2j * _MEDIAN))


def _counts(n: int, m: int) -> float:
    """Variance of n S at the median: the sum of j q^j s_j^2/2 over the coefficients s_j of a step.

    As m approaches n it grows to that of an order statistic, or of the mean of two neighbours for even n.
    """
    whole = count_variance(_MEDIAN, n, 1.0) - (1 / 12 if n % 2 else 1 / 12 + _SPACING / 4)
    if m == n:
        return whole
    q = n / m
    return min(float(np.log(abs(_damping(q)) / (1 - q))) / np.pi**2, whole)
