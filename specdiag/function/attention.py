"""Heads of attention by what they compute: QK, which scores positions, and OV, which moves values.

The singular values of Q'K and of OV stay the same when gains are folded, a head's inner coordinates are mixed, or
rotary planes are turned and rescaled: all of that changes the stored matrices and no output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specdiag.architecture.wiring import Rope
from specdiag.function.folding import Array, Norm, Reader, fold_reader


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorm:
    """The norms of queries and keys.

    Attributes:
        q_gain: shape [h] where each head is normalised, [H h] where all are together.
        k_gain: shape [h] or [groups h], likewise.
    """

    q_gain: Array
    k_gain: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Queries and keys of all heads, what stands in front of them folded in.

    Attributes:
        q: shape [H, h, d], or [H, h, d + 1] with the bias as the last column.
        k: shape [groups, h, d], or with a bias; each group serves H / groups heads.
        rope: how rotary planes lie; None without rotary positions.
        n_rotated: rows of a head that are rotated, the first ones.
    """

    q: Array
    k: Array
    rope: Rope | None = None
    n_rotated: int = 0

    @property
    def planes(self) -> NDArray[np.intp]:
        """Rows of each rotary plane, shape [n_rotated / 2, 2]."""
        rows = np.arange(self.n_rotated)
        return rows.reshape(2, -1).T if self.rope == "half" else rows.reshape(-1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """Values of all heads, the norm in front folded in, and what the outputs make of them.

    Attributes:
        v: shape [groups, h, d].
        o: shape [H, d, h].
    """

    v: Array
    o: Array


def scoring(
    q: Reader,
    k: Reader,
    heads: int,
    *,
    norm: Norm | None = None,
    rope: Rope | None = None,
    n_rotated: int = 0,
) -> Scoring:
    """Fold the norm in front into queries and keys, and cut them into heads.

    A key's bias adds the same to all scores of a query but where positions rotate it: elsewhere it is left out.

    Args:
        q: weight [H h, d] and bias.
        k: weight [groups h, d] and bias.
        heads: H.
        norm: in front of both; None where the raw stream is read.
        rope: how rotary planes lie; None without rotary positions.
        n_rotated: rows of a head that are rotated.
    """
    head_dim = len(q.weight) // heads
    queries, keys = (fold_reader(reader, norm) for reader in (q, k))
    by_group = (keys.with_bias if n_rotated else keys.weight).reshape(len(k.weight) // head_dim, head_dim, -1)
    if n_rotated and keys.bias is not None:
        by_group[:, n_rotated:, -1] = 0
    return Scoring(q=queries.with_bias.reshape(heads, head_dim, -1), k=by_group, rope=rope, n_rotated=n_rotated)


def normalised(heads: Scoring, norm: HeadNorm) -> Scoring:
    """Divide queries and keys by their Frobenius norm, whose scale their norms take out, and multiply by the gains.

    Args:
        heads: before their norms.
        norm: the norms: of each head, or of all together.
    """
    return replace(heads, q=_normalised(heads.q, norm.q_gain), k=_normalised(heads.k, norm.k_gain))


def _normalised(heads: Array, gain: Array) -> Array:
    n, head_dim, _ = heads.shape
    over = (1, 2) if len(gain) == head_dim and n > 1 else None
    unit = _over(heads, np.sqrt(np.square(heads).sum(axis=over, keepdims=True)))
    return unit * gain.reshape(-1, head_dim, 1)


def qk_cores(heads: Scoring) -> Array:
    """Compute for each head a small matrix with the singular values of Q'K, at relative position 0.

    With Q' = U_q R_q and K' = U_k R_k it is R_q R_k'.

    Args:
        heads: queries and keys.

    Returns:
        Shape [H, n, n], n the smaller of h and d.
    """
    triangles = (np.linalg.qr(side.transpose(0, 2, 1), mode="r") for side in (heads.q, heads.k))
    q, k = triangles
    return q @ np.repeat(k, len(q) // len(k), axis=0).transpose(0, 2, 1)


def plane_strengths(heads: Scoring) -> Array:
    """Compute the product of the Frobenius norms of queries and keys in each rotary plane, shape [H, n_rotated / 2].

    Args:
        heads: queries and keys.
    """
    q, k = (np.sqrt(np.square(side[:, heads.planes]).sum(axis=(2, 3))) for side in (heads.q, heads.k))
    return q * np.repeat(k, len(q) // len(k), axis=0)


def ov_cores(heads: Moving, *, scaled: bool = False) -> Array:
    """Compute for each head a small matrix with the singular values of O V.

    Args:
        heads: values and outputs.
        scaled: divide by the Frobenius norm over all heads, as a norm behind the output projection does.

    Returns:
        Shape [H, n, n], n the smaller of h and d.
    """
    o = np.linalg.qr(heads.o, mode="r")
    v = np.linalg.qr(heads.v.transpose(0, 2, 1), mode="r")
    cores = o @ np.repeat(v, len(o) // len(v), axis=0).transpose(0, 2, 1)
    return _over(cores, np.sqrt(np.square(cores).sum(keepdims=True))) if scaled else cores


def _over(values: Array, norm: Array) -> Array:
    """Divide by a norm, but keep zeros where all is zero."""
    return values / np.where(norm > 0, norm, 1.0)
