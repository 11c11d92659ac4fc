"""Alpha of a square cut: comparable across shapes, from eigenvalues and shape alone.

The exponent of noise depends on the aspect ratio (`null`), and so does that of structure: dividing one by the other
over-corrects. `square_alpha` is the Hill exponent at tail fraction 1/2 of the spectrum that W would have with its long
side rotated at random and cut to as many columns as it has rows (`compression`). One row covariance scores the same
at 1:1 and at 1:32, and no order of rows or columns matters. What the long side alone has of structure, such as
columns of very unequal norm, is rotated away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.compression import Array, Cut, upper_mean

SQUARE_NULL = 2.1216802825
"""square_alpha of random matrices of any shape: that of the square Marchenko-Pastur law."""

_SHARE = 0.5


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
    if float(slices[:, n // 2].max()) <= 0:
        return CutFit(1.0, 0.0)
    scale = float(slices.mean())
    if kept == columns:
        share, (threshold, excess) = _SHARE, _uncut(np.sort(slices, axis=None) / scale)
    else:
        share = _SHARE * n / kept
        threshold, excess = upper_mean([Cut(row / scale, columns, kept / columns) for row in slices], share)
    return CutFit(1 + share / excess if excess > 0 else float("inf"), threshold * scale)


def _uncut(values: Array) -> tuple[float, float]:
    """Threshold and integral of S d ln x above it for eigenvalues that are not cut."""
    half = len(values) // 2
    upper = values[half + len(values) % 2 :]
    threshold = float(values[half]) if len(values) % 2 else float(values[half - 1] * values[half]) ** 0.5
    if threshold <= 0:
        return 0.0, float("inf")
    return threshold, float(np.log(upper / threshold).sum()) / len(values)


def window_starts(shape: tuple[int, int]) -> list[int]:
    """Where the square windows begin on the long side.

    Args:
        shape: (rows, cols) in either order.
    """
    n, m = sorted(shape)
    count = -(-m // n)
    return [round(i * (m - n) / (count - 1)) for i in range(count)] if count > 1 else [0]


def square_windows(stack: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of `stack`, shape [s, rows, cols], cut to [s, n, n], n the smaller of rows and cols."""
    rows, cols = stack.shape[1:]
    n = min(rows, cols)
    for start in window_starts((rows, cols)):
        yield stack[:, start : start + n, :] if rows > cols else stack[:, :, start : start + n]
