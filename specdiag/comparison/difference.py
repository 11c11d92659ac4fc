"""B - A as a checkpoint of its own, read matrix by matrix: the one loop of `analyze` then gives its spectra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from msgspec.structs import replace as replace_record

from specdiag.architecture.split import Slicer
from specdiag.checkpoint.tensors import Checkpoint, Rounding, StoredTensor, WeightMatrix
from specdiag.errors import SourceError
from specdiag.records import ModuleRole
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray

_BLOCK_VALUES = 1 << 20
_ANY = ModuleRole(role="other", family="other")
"""The role of every difference. The roles in the result are those of B; equal differences are no tied weights."""

Pair = tuple[str, WeightMatrix, WeightMatrix]
"""The common name, A's matrix and B's, of one shape."""


@dataclass(frozen=True, slots=True)
class _RoundedTwice(Rounding):
    """The rounding errors of A and B, which stay in their difference however small it is.

    Attributes:
        absolute: receives the root mean square of that error when the difference is read.
    """

    absolute: tuple[list[float], ...] = ()

    def error(self, values: RawArray) -> float:
        """Compute the error of the two roundings together, over the root mean square of the difference."""
        flat = values.reshape(-1)
        mean_square = float(np.vdot(flat, flat)) / max(flat.size, 1)
        if not np.isfinite(mean_square) or mean_square == 0 or not self.absolute[0]:
            return 0.0
        return self.absolute[0][-1] / mean_square**0.5


def difference(pairs: Sequence[Pair], a: Checkpoint, b: Checkpoint) -> Checkpoint:
    """Make a checkpoint of the differences B - A, under the common names. Nothing is read.

    Args:
        pairs: of equal shapes.
        a: where the first of each lies.
        b: where the second lies.
    """
    matrices = tuple(_subtract(*pair) for pair in pairs)
    return replace(
        b,
        source=replace_record(b.source, base=str(a.source)),
        matrices=matrices,
        skipped=(),
        notes=(),
        n_tensors=len(matrices),
        n_parameters=sum(prod(m.tensor.shape) for m in matrices),
    )


def read_stack(matrix: WeightMatrix) -> tuple[RawArray, FloatType]:
    """Read the raw values of a matrix.

    Args:
        matrix: of any number of slices.

    Returns:
        The values, shape [n_slices, rows, cols], and their type.

    Raises:
        SourceError: the file is gone, was cut short or is damaged.
    """
    stack = np.ascontiguousarray(matrix.slicer.cut(matrix.tensor.read(matrix.slicer.index)))
    return stack, matrix.float_type(stack)


def _subtract(name: str, a: WeightMatrix, b: WeightMatrix) -> WeightMatrix:
    shape = (b.n_slices, *b.shape)
    wide = "F64" in (a.tensor.values_dtype, b.tensor.values_dtype)
    absolute: list[float] = []

    def read(_: int | None) -> RawArray:
        d, error = _difference(a, b, np.dtype(np.float64 if wide else np.float32))
        absolute[:] = [error]
        return d

    tensor = StoredTensor(
        name=name,
        shape=shape,
        dtype=" - ".join(dict.fromkeys((b.storage_dtype, a.storage_dtype))),
        nbytes=a.tensor.nbytes + b.tensor.nbytes,
        file=b.tensor.file,
        read=read,
        values="F64" if wide else "F32",
        rounding=_RoundedTwice(absolute=(absolute,)),
    )
    return WeightMatrix(
        name=name,
        module=_ANY,
        shape=b.shape,
        n_slices=b.n_slices,
        tensor=tensor,
        slicer=Slicer(shape),
    )


def _difference(a: WeightMatrix, b: WeightMatrix, dtype: np.dtype[np.generic]) -> tuple[RawArray, float]:
    """Compute B - A in float64, and the root mean square of the rounding errors of A and B in it."""
    (raw_a, type_a), (raw_b, type_b) = read_stack(a), read_stack(b)
    if raw_a.shape != raw_b.shape:
        raise SourceError(f"{a.tensor.name} and {b.tensor.name} have other shapes than their headers say")
    flat_a, flat_b = raw_a.reshape(-1), raw_b.reshape(-1)
    out = np.empty(flat_a.size, dtype)
    squares = np.zeros(2)
    float64 = np.dtype(np.float64)
    for start in range(0, out.size, _BLOCK_VALUES):
        cut = slice(start, start + _BLOCK_VALUES)
        left, right = type_a.widen(flat_a[cut], float64), type_b.widen(flat_b[cut], float64)
        with np.errstate(invalid="ignore", over="ignore"):
            out[cut] = right - left
            squares += [float(np.vdot(left, left)), float(np.vdot(right, right))]
    errors = np.array([_error(a, raw_a), _error(b, raw_b)])
    with np.errstate(invalid="ignore", over="ignore"):
        return out.reshape(raw_b.shape), float(np.sqrt((errors**2 * squares).sum() / max(out.size, 1)))


def _error(matrix: WeightMatrix, raw: RawArray) -> float:
    """Compute the error of rounding to the storage type: its root mean square over that of the values."""
    rounding = matrix.tensor.rounding or Rounding(eps=FLOAT_TYPES[matrix.tensor.values_dtype].eps)
    return rounding.error(raw)
