"""Cutting a fused or stacked tensor into the matrices that it holds, as data that works on any array type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Slicer:
    """How one matrix is cut from its stored tensor.

    Applied in this order: take `index` of the first axis (a stacked expert: only this slice is read from disk),
    reshape to `view`, take `select`, permute by `axes`, reshape to (n_slices, rows, cols).

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

    def cut(self, raw: Any) -> Any:
        """The matrix, shape [n_slices, rows, cols], from `raw`: the tensor, or its slice `index` where that is set."""
        if self.view is not None:
            raw = raw.reshape(self.view)
        if self.select:
            raw = raw[self.select]
        if self.axes is not None:
            raw = raw.transpose(self.axes) if hasattr(raw, "__array_interface__") else raw.permute(self.axes)
        return raw.reshape(self.shape)
