"""Gains of norms taken into the matrices that they feed, and the mean that LayerNorm takes out."""

from __future__ import annotations

from typing import NamedTuple

from specdiag.function.arrays import Array, joined


class Norm(NamedTuple):
    """A norm in front of matrices.

    Attributes:
        gain: its factors, shape [d]; where a model adds 1 to the stored ones, that is done.
        bias: shape [d]; None without one.
        is_layer: True for LayerNorm, which takes the mean out.
    """

    gain: Array
    bias: Array | None = None
    is_layer: bool = False


class Reader(NamedTuple):
    """A matrix that reads the stream.

    Attributes:
        weight: shape [n, d].
        bias: shape [n]; None where there is none.
    """

    weight: Array
    bias: Array | None = None

    @property
    def with_bias(self) -> Array:
        """The weight with its bias as the last column, shape [n, d + 1]; the weight alone where it has none."""
        return self.weight if self.bias is None else joined([self.weight, self.bias[:, None]], 1)


def fold_reader(reader: Reader, norm: Norm | None) -> Reader:
    """Take the norm in front into a matrix: W diag(g), with LayerNorm W diag(g) C, and W beta + b.

    C = I - 11'/d takes out the mean, as LayerNorm does.

    Args:
        reader: weight and bias as stored.
        norm: in front of it; None where the raw stream is read.
    """
    if norm is None:
        return reader
    weight, bias = reader.weight * norm.gain, reader.bias
    if norm.is_layer:
        weight = weight - weight.mean(axis=1, keepdims=True)
    if norm.bias is not None:
        shift = reader.weight @ norm.bias
        bias = shift if bias is None else bias + shift
    return Reader(weight, bias)


def fold_writer(weight: Array, *, is_layer: bool, gain: Array | None = None) -> Array:
    """Take what follows into a matrix that writes to the stream: diag(g) W, and C W where LayerNorms read the stream.

    Args:
        weight: shape [d, n].
        is_layer: whether the norms of the stream are LayerNorms.
        gain: of a norm behind the matrix, shape [d]; None without one.
    """
    scaled = weight if gain is None else weight * gain[:, None]
    return scaled - scaled.mean(axis=0) if is_layer else scaled
