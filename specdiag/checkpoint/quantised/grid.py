"""Scales that lie on a grid over a matrix: one in all, one a row, a column, a group or a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_USUAL = (128, 128)
"""The blocks of DeepSeek-V3, assumed where no configuration says another size and the shapes fit exactly."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks of a matrix that share a scale; those at its right and lower edge may be cut.

    Attributes:
        rows: of a block.
        cols: of a block.
    """

    rows: int
    cols: int

    def apply(self, operation: np.ufunc, values: NDArray[np.float32], scales: NDArray[np.float32]) -> None:
        """Combine each value with the scale of its block, in place.

        Args:
            operation: numpy.multiply, numpy.subtract.
            values: shape [rows, cols].
            scales: of a shape that `fit` accepted.
        """
        rows, cols = values.shape
        scales = scales.reshape(-(-rows // self.rows), -(-cols // self.cols))
        if self.rows == 1 and scales.shape[1] == 1:
            operation(values, scales, out=values)
            return
        for i, line in enumerate(scales):
            block = values[i * self.rows : (i + 1) * self.rows]
            operation(block, line if len(line) in (1, cols) else np.repeat(line, self.cols)[:cols], out=block)


def fit(shape: tuple[int, int], scales: Sequence[int], block: Sequence[int] | None) -> Grid | None:
    """Find how scales lie over a matrix.

    Args:
        shape: (rows, cols) of the matrix.
        scales: shape of the scales.
        block: (rows, cols) of a block as the configuration says, or None.

    Returns:
        The blocks, None where the shapes do not show them.
    """
    rows, cols = shape
    if math.prod(scales) == 1:
        return Grid(rows, cols)
    if scales[0] == rows == math.prod(scales):
        return Grid(1, cols)
    if len(scales) != 2:
        return None
    if tuple(scales) == (1, cols):
        return Grid(rows, 1)
    for height, width in (*([tuple(block)] if block is not None else []), _USUAL):
        if tuple(scales) == (-(-rows // height), -(-cols // width)):
            return Grid(height, width)
    return Grid(1, cols // scales[1]) if scales[0] == rows and cols % scales[1] == 0 else None


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Flatten the shape of a tensor to (rows, cols). Its first axis is that of the outputs."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def item_shape(shape: Sequence[int], part: Sequence[int]) -> tuple[int, ...]:
    """Give the shape of what a part holds for one item of a stack.

    Args:
        shape: of the stack.
        part: shape of the part. It belongs to all items where its first axis is not that of the stack.
    """
    return tuple(part[1:] if part[:1] == shape[:1] else part)


def block_size(value: object) -> tuple[int, int] | None:
    """Read the `weight_block_size` of a configuration.

    Args:
        value: whatever the configuration holds there.

    Returns:
        (rows, cols) if these are two positive whole numbers, None for anything else.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    height, width = value
    return (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None
