"""Low-rank updates W + s B A: the core without W, the sum with W. Float64 throughout, factors widened in blocks.

LoRA: Hu et al. 2021, arXiv 2106.09685. DoRA: Liu et al. 2024, arXiv 2402.09353. AdaLoRA: arXiv 2303.10512.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from specdiag.architecture.split import Slicer
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray

_BLOCK = 1 << 20
"""Values that are widened at once."""


@dataclass(frozen=True, slots=True)
class Update:
    """The update of one module. Nothing is read until a method asks for values.

    Attributes:
        module: its name in the base model.
        adapter: the adapter's name where several may lie side by side, or None.
        down: A, shape [r, in], of a convolution [r, in, *kernel].
        up: B, shape [out, r], of a convolution [out, r, 1, 1].
        middle: AdaLoRA's diagonal E of r values, or None.
        magnitude: DoRA's norms m of `out` values, or None.
        alpha: kohya's alpha, a single value, or None.
        known_scale: s where a config says it; None leaves alpha / r, or 1 without an alpha.
        transposed: whether the module stores (in, out), as an embedding and GPT-2's Conv1D do.
        leaf: which parameter of the module it changes.
    """

    module: str
    adapter: str | None
    down: StoredTensor = field(repr=False)
    up: StoredTensor = field(repr=False)
    middle: StoredTensor | None
    magnitude: StoredTensor | None
    alpha: StoredTensor | None
    known_scale: float | None
    transposed: bool
    leaf: str = "weight"

    @property
    def name(self) -> str:
        """The base model's parameter."""
        return f"{self.module}.{self.leaf}"

    @property
    def rank(self) -> int:
        """r, the number of rows of A."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, as the base model stores it."""
        out, inputs, kernel = self.up.shape[0], self.down.shape[1], self.down.shape[2:]
        return (inputs, out) if self.transposed else (out, inputs, *kernel)

    @property
    def has_scale(self) -> bool:
        """True where a scale is stored."""
        return self.known_scale is not None or self.alpha is not None

    @property
    def nbytes(self) -> int:
        """Size on disk of its tensors."""
        parts = (self.down, self.up, self.middle, self.magnitude, self.alpha)
        return sum(part.nbytes for part in parts if part is not None)

    def fitted_to(self, shape: tuple[int, ...]) -> Update | None:
        """Turn the update the way round that a weight asks for. Only a square weight leaves that to `transposed`.

        Args:
            shape: that of the weight, (out, in) or (in, out), of a convolution with its kernel.

        Returns:
            The update, None where it fits neither way.
        """
        for update in (self, replace(self, transposed=not self.transposed)):
            same_sides = update.shape[:2] == shape[:2] and prod(update.shape[2:]) == prod(shape[2:]) == 1
            if update.shape == shape or same_sides:
                return update
        return None

    def scale(self) -> float:
        """Give s, which is read where it is stored as a tensor."""
        if self.known_scale is not None:
            return self.known_scale
        return 1.0 if self.alpha is None else float(_vector(self.alpha)[0]) / self.rank

    def core(self, slicer: Slicer | None = None) -> NDArray[np.float64]:
        """Compute a small matrix with the singular values of the product, or of a part of it.

        With B = Q_B R_B and A^T = Q_A R_A it is s R_B diag(E) R_A^T. It has as many NaN as the factors have values that
        are not finite: a QR would spread them to all.

        Args:
            slicer: of a part that takes rows or columns of the product; None for all of it.

        Returns:
            Shape [1, min(rows, r), min(cols, r)].
        """
        left, right = self._sides()
        if slicer is not None:
            left, right = _cut(slicer, left, right)
        upper, lower = _triangle(left, self._type(left)), _triangle(right, self._type(right))
        shape = (1, len(upper[0]), len(lower[0]))
        n_bad = upper[1] + lower[1]
        if n_bad:
            core = np.zeros(shape)
            core.flat[: min(n_bad, core.size)] = np.nan
            return core
        return (self._weighted(upper[0]) @ lower[0].T).reshape(shape)

    def added_to(self, raw: RawArray, kind: FloatType) -> RawArray:
        """Add the update to its weight: W + s B A, with DoRA m (W + s B A) / ||W + s B A||.

        The norm is that of each output's weights.

        Args:
            raw: W as it is stored.
            kind: its type.

        Returns:
            Float32, or float64 where W is, in the shape of W.
        """
        wide = np.dtype(np.float64)
        matrix = raw.reshape(raw.shape[0], -1)
        result = np.empty(matrix.shape, wide if kind.name == "F64" else np.float32)
        source, target = (matrix.T, result.T) if self.transposed else (matrix, result)
        up = self._weighted(FLOAT_TYPES[self.up.values_dtype].widen(_flat(self.up), wide))
        down = FLOAT_TYPES[self.down.values_dtype].widen(_flat(self.down), wide)
        norms = None if self.magnitude is None else _vector(self.magnitude)[:, None]
        with np.errstate(all="ignore"):  # overflows and 0/0 are reported as not finite when the matrix is measured
            for rows in _blocks(source.shape):
                block = kind.widen(source[rows], wide) + up[rows] @ down
                if norms is not None:
                    block *= norms[rows] / np.linalg.norm(block, axis=1, keepdims=True)
                target[rows] = block
        return result.reshape(raw.shape)

    def _sides(self) -> tuple[RawArray, RawArray]:
        """Read the raw sides L [rows, r] and R [cols, r] of the stored product L R^T."""
        up, down = _flat(self.up), _flat(self.down).T
        return (down, up) if self.transposed else (up, down)

    def _type(self, side: RawArray) -> FloatType:
        """Find the type of a side. Where the factors have different types, numpy's types tell them apart."""
        kinds = (FLOAT_TYPES[self.up.values_dtype], FLOAT_TYPES[self.down.values_dtype])
        return next(kind for kind in kinds if kind.storage == side.dtype)

    def _weighted(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Compute s L diag(E) of the columns [n, r]."""
        scaled = columns * self.scale()
        return scaled if self.middle is None else scaled * _vector(self.middle)


@dataclass(frozen=True, slots=True)
class Applied:
    """An update beside the weight that it changes.

    Attributes:
        name: the parameter, as the report names it.
        update: turned the way round of the weight.
        weight: that of the base model; None where no base was given.
    """

    name: str
    update: Update
    weight: StoredTensor | None = field(default=None, repr=False)


def row_cut(slicer: Slicer) -> Callable[[RawArray], RawArray] | None:
    """Make the function that cuts a part's rows from a factor.

    Args:
        slicer: cuts the part from the product.

    Returns:
        A function of a side [rows, r]; None where the part takes more than rows.
    """
    if slicer.axes is not None or slicer.index is not None or len(slicer.select) > (2 if slicer.view else 1):
        return None
    view, size = slicer.view, slicer.shape[1]

    def take(side: RawArray) -> RawArray:
        viewed = side if view is None else side.reshape(*view[:-1], side.shape[-1])
        return viewed[slicer.select].reshape(size, side.shape[-1])

    return take


def can_cut(slicer: Slicer) -> bool:
    """Tell whether a part takes rows alone or columns alone, so that it is a product of parts of the factors.

    Args:
        slicer: cuts the part from the product.
    """
    return row_cut(slicer) is not None or _is_column_cut(slicer)


def _is_column_cut(slicer: Slicer) -> bool:
    return (
        slicer.axes is None
        and slicer.index is None
        and slicer.view is None
        and slicer.select[:1] == (slice(None),)
        and len(slicer.select) == 2
    )


def _cut(slicer: Slicer, left: RawArray, right: RawArray) -> tuple[RawArray, RawArray]:
    take = row_cut(slicer)
    if take is not None:
        return take(left), right
    return left, right[slicer.select[1]]


def _triangle(tall: RawArray, kind: FloatType) -> tuple[NDArray[np.float64], int]:
    """Compute R [min(n, r), r] of the QR of a raw matrix [n, r], in blocks of rows.

    The second value counts entries of the matrix that are not finite; R is undefined where there are some.
    """
    r = tall.shape[1]
    triangle, n_bad = np.empty((0, r)), 0
    for rows in _blocks(tall.shape):
        block = kind.widen(tall[rows], np.dtype(np.float64))
        n_bad += block.size - int(np.isfinite(block).sum())
        if not n_bad:
            triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, block]), mode="r"))
    return (triangle if not n_bad else np.empty((min(tall.shape), r))), n_bad


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _BLOCK // shape[1])
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _flat(tensor: StoredTensor) -> RawArray:
    """Read a factor as a raw matrix [n, m], the kernel of a convolution merged with its inputs."""
    raw = tensor.read(None)
    return raw.reshape(raw.shape[0], prod(raw.shape[1:]))


def _vector(tensor: StoredTensor) -> NDArray[np.float64]:
    """Read the values of a tensor in a row; an alpha may be stored as an integer."""
    raw, kind = tensor.read(None), FLOAT_TYPES.get(tensor.values_dtype)
    return (raw.astype(np.float64) if kind is None else kind.widen(raw, np.dtype(np.float64))).reshape(-1)
