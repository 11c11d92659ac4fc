"""The shape-free twin of alpha: one Hill fit on the pooled eigenvalues of square windows.

The exponent of noise depends on the aspect ratio (`null`), and so does that of structure: dividing one by the other
over-corrects. Square windows of the small side n all have the same aspect ratio, and one covariance scores the same
at 1:1 and at 1:8. Windows are ceil(m/n) evenly spaced cuts of the long side; they overlap where m/n is no integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray


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
