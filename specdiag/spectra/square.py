"""Alpha of a square cut: comparable across shapes, from eigenvalues and shape alone.

The exponent of noise depends on the aspect ratio (`null`), and so does that of structure: dividing one by the other
over-corrects. `square_alpha` is the Hill exponent at tail fraction 1/2 of the spectrum that W would have with its long
side rotated at random and cut to as many columns as it has rows (`compression`). One row covariance scores the same
at 1:1 and at 1:32, and no order of rows or columns matters. What the long side alone has of structure, such as
columns of very unequal norm, is rotated away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.compression import Array, Cut, upper_mean

SQUARE_NULL = 2.1216802825
"""square_alpha of random matrices of any shape: that of the square Marchenko-Pastur law."""

_SHARE = 0.5

_ASPECTS = (1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_SHIFTS = (-0.45, -0.50, -0.47, -0.42, -0.38, -0.325, -0.23, -0.17, -0.085, -0.044, -0.0215, -0.0112)
"""n times the mean of square_alpha over random matrices less its limit, by aspect ratio."""
_SPREADS = (0.0, 2.54, 2.15, 1.62, 1.18, 0.82, 0.515, 0.381, 0.184, 0.091, 0.045, 0.0225)
"""n times its standard deviation; at 1:1 sqrt(.6 + 2.4 ln n), where the threshold is one or two eigenvalues.

Both are simulated by the bidiagonal form of Gaussian matrices, even and odd n from 64 to 1024, 400 to 2500 draws each.
The shift of odd n at 1:1 is .2 less, that of even n with one more column .35 more.
"""


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
    """Give the mean of square_alpha over random matrices: 2.1217, and .45/n less at 1:1 or .17/n less at 1:4.

    Args:
        shape: (rows, cols) in either order.
    """
    n, m = sorted(shape)
    return SQUARE_NULL + _by_aspect(m / n, _SHIFTS) / n


def square_sd(shape: tuple[int, int]) -> float:
    """Give the standard deviation of square_alpha over random matrices.

    Args:
        shape: (rows, cols) in either order.
    """
    n, m = sorted(shape)
    return _by_aspect(m / n, ((0.6 + 2.4 * np.log(n)) ** 0.5, *_SPREADS[1:])) / n


def _by_aspect(aspect: float, values: Sequence[float]) -> float:
    """Interpolate in the logarithm of the aspect ratio; beyond the table both fall as its inverse."""
    known = float(np.interp(np.log(aspect), np.log(_ASPECTS), values))
    return known * min(1.0, _ASPECTS[-1] / aspect)
