"""Values of a piece of a model in the type in which they are stored, and the rounding that this type allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from specdiag.architecture.split import Slicer
from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray

Wide = NDArray[np.float64]
BLOCK = 1 << 20
"""Values that are widened at once."""


@dataclass(frozen=True, slots=True)
class Values:
    """Values of a piece.

    Attributes:
        raw: as stored, shape [slices, rows, cols].
        kind: their type.
        rounding: the coarseness of the codes that they were decoded from, None without codes.
    """

    raw: RawArray
    kind: FloatType
    rounding: Rounding | None = None

    def wide(self, cut: slice = slice(None)) -> Wide:
        """Give a range of the flat values in float64."""
        return self.kind.widen(self.raw.reshape(-1)[cut], np.dtype(np.float64))

    def like(self, raw: RawArray) -> Values:
        """Give other values of the same type."""
        return replace(self, raw=raw)

    def code_error(self) -> float:
        """Estimate the root mean square of the error that codes leave; 0 without codes."""
        if self.rounding is None:
            return 0.0
        flat = self.kind.widen(self.raw, np.dtype(np.float32))
        return self.rounding.error(flat) * float(np.sqrt(np.mean(np.square(flat, dtype=np.float64))))


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor, or a part of a fused or stacked one.

    Attributes:
        key: its name, with the part.
        tensor: what it is cut from.
        slicer: how it is cut from it; None for all of it.
        role: its role where it is a matrix.
    """

    key: str
    tensor: StoredTensor
    slicer: Slicer | None = None
    role: str | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, cols); a vector is one column, and all axes behind the first are one."""
        if self.slicer is not None:
            return self.slicer.shape
        shape = self.tensor.shape
        return (1, shape[0], prod(shape[1:])) if shape else (1, 1, 1)

    @property
    def is_float(self) -> bool:
        """True where its values are numbers that can be compared."""
        return self.tensor.values_dtype in FLOAT_TYPES and self.tensor.reason is None

    def of(self, tensor: StoredTensor) -> Piece:
        """Give the same piece of another tensor of this shape."""
        return replace(self, tensor=tensor)

    def read(self) -> Values:
        """Read its values.

        Raises:
            SourceError: the file is gone, was cut short or is damaged.
        """
        kind = FLOAT_TYPES[self.tensor.values_dtype]
        if self.slicer is None:
            return Values(self.tensor.read(None).reshape(self.shape), kind, self.tensor.rounding)
        raw = np.ascontiguousarray(self.slicer.cut(self.tensor.read(self.slicer.index)))
        return Values(raw.reshape(self.shape), kind, self.tensor.rounding)


def blocks(n: int) -> Iterator[slice]:
    """Yield ranges of flat values, in order.

    Args:
        n: number of values.
    """
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def spacing(values: Wide, kind: FloatType) -> Wide:
    """Compute the distance between neighbouring numbers of a type, at each value.

    Args:
        values: any shape; infinite ones and NaN get the distance at 1.
        kind: the type.
    """
    finite = np.where(np.isfinite(values), values, 1.0)
    exponent = np.frexp(finite)[1]
    return np.maximum(np.ldexp(kind.eps, exponent - 1), kind.tiny * kind.eps)
