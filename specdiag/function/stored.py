"""Stored tensors as a block multiplies with them: (out, in), in float64, each with its bias, read when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from specdiag.architecture.wiring import UnknownWiring
from specdiag.checkpoint.adapters.update import row_cut
from specdiag.checkpoint.held_values import read_once
from specdiag.checkpoint.tensors import StoredTensor, WeightMatrix
from specdiag.function.arrays import Array, is_finite, placed
from specdiag.function.folding import Norm, Reader
from specdiag.spectra.float_types import FLOAT_TYPES

Vector = TypeVar("Vector")
"""numpy's array or torch's tensor."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix of a block.

    Attributes:
        matrix: as it is stored.
        transposed: whether that is (in, out).
        bias: the tensor that holds its bias, whole where the weight is a part of a fused one; None without one.
    """

    matrix: WeightMatrix
    transposed: bool
    bias: StoredTensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        rows, cols = self.matrix.shape
        return (cols, rows) if self.transposed else (rows, cols)

    def read(self, device: str = "cpu") -> Reader:
        """Read weight and bias.

        Args:
            device: on which they are to be computed with.
        """
        tensor, slicer = self.matrix.tensor, self.matrix.slicer
        raw = slicer.cut(read_once(tensor, slicer.index))[0]
        values = FLOAT_TYPES[tensor.values_dtype].widen(raw.T if self.transposed else raw, np.dtype(np.float64))
        bias = None if self.bias is None else placed(self.own_part(_vector(self.bias)), device)
        return Reader(placed(values, device), bias)

    def own_part(self, bias: Vector) -> Vector:
        """Cut the bias of the tensor as the weight is cut.

        Args:
            bias: of the whole tensor, numpy's or torch's, one axis.
        """
        slicer = self.matrix.slicer
        if self.transposed:
            return cast("Vector", cast("Any", bias)[slicer.select[1]]) if slicer.select else bias
        take = row_cut(slicer)
        assert take is not None  # `has_cut`
        return cast("Vector", take(cast("Any", bias)[:, None])[:, 0])


def finite(weight: Weight, device: str = "cpu") -> Reader:
    """Read weight and bias.

    Args:
        weight: the matrix.
        device: on which they are to be computed with.

    Raises:
        UnknownWiring: a value is not finite.
    """
    values = weight.read(device)
    if not is_finite(values.weight) or (values.bias is not None and not is_finite(values.bias)):
        raise UnknownWiring(f"{weight.matrix.key} holds values that are not finite")
    return values


def has_cut(matrix: WeightMatrix, *, transposed: bool) -> bool:
    """Tell whether a matrix takes outputs of its tensor alone, so that a bias of the tensor is cut likewise.

    Args:
        matrix: a tensor, or a part of one.
        transposed: whether it is stored (in, out).
    """
    slicer = matrix.slicer
    if not transposed:
        return len(matrix.tensor.shape) == 2 and row_cut(slicer) is not None
    is_plain = len(matrix.tensor.shape) == 2 and slicer.view is None and slicer.axes is None and slicer.index is None
    return is_plain and (not slicer.select or slicer.select[:1] == (slice(None),))


@dataclass(frozen=True, slots=True)
class StoredNorm:
    """The tensors of a norm.

    Attributes:
        gain: its factors.
        bias: None without one.
        adds_one: whether 1 is added to the stored factors.
        is_layer: True for LayerNorm.
    """

    gain: StoredTensor
    bias: StoredTensor | None
    adds_one: bool
    is_layer: bool

    def read(self, device: str = "cpu") -> Norm:
        """Read gain and bias.

        Args:
            device: on which they are to be computed with.
        """
        gain = placed(_vector(self.gain), device)
        bias = None if self.bias is None else placed(_vector(self.bias), device)
        return Norm(1 + gain if self.adds_one else gain, bias, self.is_layer)

    def finite(self, device: str = "cpu") -> Norm:
        """Read gain and bias.

        Args:
            device: on which they are to be computed with.

        Raises:
            UnknownWiring: a value is not finite.
        """
        norm = self.read(device)
        if not is_finite(norm.gain) or (norm.bias is not None and not is_finite(norm.bias)):
            raise UnknownWiring(f"{self.gain.name} or its bias holds values that are not finite")
        return norm


def _vector(tensor: StoredTensor) -> Array:
    return FLOAT_TYPES[tensor.values_dtype].widen(tensor.read(None), np.dtype(np.float64)).reshape(-1)
