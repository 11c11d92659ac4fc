"""FARMS (arXiv 2506.06280): one fit on the pooled eigenvalues of overlapping sub-matrices of one aspect ratio."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.spectra.float_types import RawArray

ROWS = 2000
"""Rows of a window, the paper's value for language models; clamped to the smaller side."""
ASPECT = 1.0
"""Columns over rows of a window."""
WINDOWS = 10
"""Windows a dimension."""


def farms_windows(
    stack: RawArray, rows: int = ROWS, aspect: float = ASPECT, windows: int = WINDOWS
) -> Iterator[RawArray]:
    """Views of `stack`, shape [s, R, C], cut to [s, rows, int(rows * aspect)], row by row.

    Args:
        stack: slices of shape R x C.
        rows: rows of a window, clamped to min(R, C).
        aspect: columns over rows; the columns are clamped to C.
        windows: at most this many a dimension.
    """
    height = min(rows, *stack.shape[1:])
    width = min(int(height * aspect), stack.shape[2])
    for top in _starts(stack.shape[1], height, windows):
        for left in _starts(stack.shape[2], width, windows):
            yield stack[:, top : top + height, left : left + width]


def _starts(length: int, size: int, windows: int) -> list[int]:
    step = max(1, (length - size) // max(1, windows - 1))
    count = min(windows, max(1, (length - size) // step + 1))
    return [min(i * step, length - size) for i in range(count)]
