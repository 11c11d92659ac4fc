"""Cutting a fused or stacked tensor into the matrices that it holds, as data that works on any array type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import Any, TypeVar, cast

A = TypeVar("A")
"""numpy's array or torch's tensor."""


@dataclass(frozen=True, slots=True)
class Slicer:
    """How one matrix is cut from its stored tensor.

    Applied in this order: take `index` of the first axis (of a stacked expert only this slice is read from
    disk), reshape to `view`, take `select`, permute by `axes`, reshape to (n_slices, rows, cols).

    Attributes:
        shape: (n_slices, rows, cols) of the result.
        index: index of the first axis, or None for the whole tensor.
        view: intermediate shape, or None.
        select: one slice or integer an axis of the intermediate shape, or ().
        axes: permutation after selecting, or None.
    """

    shape: tuple[int, int, int]
    index: int | None = None
    view: tuple[int, ...] | None = None
    select: tuple[slice | int, ...] = ()
    axes: tuple[int, ...] | None = None

    def cut(self, raw: A) -> A:
        """Cut the matrix out, as a view where strides allow one.

        Args:
            raw: the whole tensor, or its slice `index` if that is set.

        Returns:
            The matrix [n_slices, rows, cols].
        """
        cut = cast("Any", raw)
        if self.view is not None:
            cut = cut.reshape(self.view)
        if self.select:
            cut = cut[self.select]
        if self.axes is not None:
            cut = cut.transpose(self.axes) if hasattr(cut, "__array_interface__") else cut.permute(self.axes)
        return cut.reshape(self.shape)


@lru_cache(maxsize=4096)  # of many matrices a few shapes
def whole(shape: tuple[int, ...], index: int | None = None) -> Slicer:
    """Cut a matrix as it is stored.

    Args:
        shape: (rows, cols).
        index: its place in a stack of such matrices; None for a tensor of its own.
    """
    return Slicer((1, shape[0], shape[1]), index)


def kernels(shape: Sequence[int]) -> Slicer:
    """Cut a convolution into a matrix [out, in] for each kernel position; their eigenvalues are pooled.

    Args:
        shape: (out, in, *kernel).
    """
    rows, cols, n_slices = shape[0], shape[1], prod(shape[2:])
    return Slicer((n_slices, rows, cols), view=(rows, cols, n_slices), axes=(2, 0, 1))


def stack(shape: Sequence[int], axis: int) -> Slicer:
    """Cut a tensor of three axes into a stack of matrices; their eigenvalues are pooled.

    Args:
        shape: of the tensor.
        axis: that of the stack.
    """
    rest = [i for i in range(3) if i != axis]
    return Slicer((shape[axis], shape[rest[0]], shape[rest[1]]), axes=(axis, *rest) if axis else None)


def unfold(shape: Sequence[int], axis: int) -> Slicer:
    """Unfold a tensor into a matrix with one axis along one side and all other axes merged, in order, along the other.

    Args:
        shape: of the tensor.
        axis: the axis of its own.
    """
    merged = prod(shape) // shape[axis]
    if axis == 0:
        return Slicer((1, shape[0], merged))
    order = (*(i for i in range(len(shape)) if i != axis), axis)
    return Slicer((1, merged, shape[axis]), axes=None if axis == len(shape) - 1 else order)


def contiguous(shape: Sequence[int], axis: int, sizes: Sequence[int], index: int | None = None) -> list[Slicer]:
    """Cut parts that lie one after the other along one axis of a matrix.

    Args:
        shape: (rows, cols) of the matrix.
        axis: 0 or 1.
        sizes: length of each part.
        index: place of the matrix in a stack, or None.

    Returns:
        The cut of each part, in order.
    """
    ends = list(accumulate(sizes))
    cuts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [_along(shape, axis, cut, size, index) for cut, size in zip(cuts, sizes, strict=True)]


def interleaved(shape: Sequence[int], axis: int, n_parts: int, index: int | None = None) -> list[Slicer]:
    """Cut parts that alternate along one axis of a matrix: part i holds i, i + n_parts, ...

    Args:
        shape: (rows, cols) of the matrix.
        axis: 0 or 1.
        n_parts: number of parts.
        index: place of the matrix in a stack, or None.

    Returns:
        The cut of each part, in order.
    """
    size = shape[axis] // n_parts
    return [_along(shape, axis, slice(i, None, n_parts), size, index) for i in range(n_parts)]


def grouped(shape: Sequence[int], groups: int, sizes: Sequence[int]) -> list[Slicer]:
    """Cut parts that lie one after the other within each group of rows of a matrix.

    Args:
        shape: (rows, cols) of the matrix.
        groups: number of groups.
        sizes: rows of each part in one group.

    Returns:
        The cut of each part, in order.
    """
    cols = shape[1]
    view = (groups, shape[0] // groups, cols)
    ends = list(accumulate(sizes))
    return [
        Slicer((1, groups * size, cols), view=view, select=(slice(None), slice(end - size, end)))
        for end, size in zip(ends, sizes, strict=True)
    ]


def _along(shape: Sequence[int], axis: int, cut: slice, size: int, index: int | None) -> Slicer:
    rows, cols = (size, shape[1]) if axis == 0 else (shape[0], size)
    return Slicer((1, rows, cols), index, select=(cut,) if axis == 0 else (slice(None), cut))
