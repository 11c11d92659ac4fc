"""FARMS (arXiv 2506.06280): one fit on the pooled eigenvalues of overlapping sub-matrices of one aspect ratio."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.records import Settings
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
        aspect: columns over rows; the columns are clamped to 1 and C.
        windows: at most this many a dimension.
    """
    height, width = window_shape((stack.shape[1], stack.shape[2]), rows, aspect)
    for top in _starts(stack.shape[1], height, windows):
        for left in _starts(stack.shape[2], width, windows):
            yield stack[:, top : top + height, left : left + width]


def chosen_windows(stack: RawArray, settings: Settings) -> Iterator[RawArray]:
    """Cut the windows of the settings.

    Args:
        stack: slices of shape R x C.
        settings: with the three of `farms`.
    """
    return farms_windows(stack, *_chosen(settings))


def window_shape(shape: tuple[int, int], rows: int = ROWS, aspect: float = ASPECT) -> tuple[int, int]:
    """Give rows and columns of each window of a matrix.

    Args:
        shape: of the matrix.
        rows: as for `farms_windows`.
        aspect: as for `farms_windows`.
    """
    height = min(rows, *shape)
    return height, min(max(1, int(height * aspect)), shape[1])


def windows_of(shape: tuple[int, int], settings: Settings) -> tuple[int, tuple[int, int]]:
    """Count the windows of a matrix, and give the shape of each.

    Args:
        shape: of the matrix.
        settings: with the three of `farms`.
    """
    rows, aspect, windows = _chosen(settings)
    size = window_shape(shape, rows, aspect)
    down, across = (len(_starts(length, side, windows)) for length, side in zip(shape, size, strict=True))
    return down * across, size


def described(settings: Settings) -> str:
    """Write the windows of the settings.

    Args:
        settings: with the three of `farms`.
    """
    rows, aspect, windows = _chosen(settings)
    return f"windows of {rows} rows, 1:{aspect:g}, {windows} a dimension"


def _chosen(settings: Settings) -> tuple[int, float, int]:
    return settings.farms_rows or ROWS, settings.farms_aspect or ASPECT, settings.farms_windows or WINDOWS


def _starts(length: int, size: int, windows: int) -> list[int]:
    step = max(1, (length - size) // max(1, windows - 1))
    count = min(windows, max(1, (length - size) // step + 1))
    return [min(i * step, length - size) for i in range(count)]
