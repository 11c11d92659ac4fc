"""Heads of attention by what they compute: QK, which scores positions, and OV, which moves values.

The singular values of Q'K and of OV stay the same when gains are folded, a head's inner coordinates are mixed, or
rotary planes are turned and rescaled: all of that changes the stored matrices and no output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from specdiag.architecture.wiring import Rope
from specdiag.function.arrays import Array, filled, joined, nonzero, norms, repeated, swapped
from specdiag.function.decompositions import triangle
from specdiag.function.folding import Norm, Reader, fold_reader


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

    def by_plane(self, sides: Array) -> Array:
        """Cut the rotated rows into planes.

        Args:
            sides: queries or keys, shape [..., h, d].

        Returns:
            Shape [..., n_rotated / 2, 2, d].
        """
        *others, _, width = sides.shape
        rotated = sides[..., : self.n_rotated, :]
        if self.rope == "half":
            return rotated.reshape(*others, 2, -1, width).swapaxes(-3, -2)
        return rotated.reshape(*others, -1, 2, width)

    def by_row(self, planes: Array) -> Array:
        """Give the value of each plane to its two rows, and 1 to rows that are not rotated.

        Args:
            planes: shape [..., n_rotated / 2].

        Returns:
            Shape [..., h].
        """
        both = [planes, planes] if self.rope == "half" else [planes[..., None], planes[..., None]]
        rows = joined(both, -1).reshape(*planes.shape[:-1], self.n_rotated)
        rest = self.k.shape[-2] - self.n_rotated
        return joined([rows, filled(self.k[: len(planes), -rest:, 0], 1.0)], -1) if rest else rows


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
    if 0 < n_rotated < head_dim and keys.bias is not None:
        rest = by_group[:, n_rotated:]
        without = joined([rest[..., :-1], filled(rest[..., -1:], 0.0)], -1)
        by_group = joined([by_group[:, :n_rotated], without], 1)
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
    over = (1, 2) if len(gain) == head_dim and n > 1 else (0, 1, 2)
    unit = heads / nonzero((heads * heads).sum(axis=over, keepdims=True) ** 0.5)
    return unit * gain.reshape(-1, head_dim, 1)


def qk_cores(heads: Scoring) -> Array:
    """Compute for each head a small matrix with the singular values of Q'K, at relative position 0.

    With Q' = U_q R_q and K' = U_k R_k it is R_q R_k'.

    Args:
        heads: queries and keys.

    Returns:
        Shape [H, n, n], n the smaller of h and d.
    """
    q, k = (triangle(swapped(side)) for side in (heads.q, heads.k))
    return q @ swapped(repeated(k, len(q) // len(k)))


def plane_strengths(heads: Scoring) -> Array:
    """Compute the product of the Frobenius norms of queries and keys in each rotary plane, shape [H, n_rotated / 2].

    Args:
        heads: queries and keys.
    """
    q, k = (norms(heads.by_plane(side), 2, 3) for side in (heads.q, heads.k))
    return q * repeated(k, len(q) // len(k))


def ov_cores(heads: Moving, *, scaled: bool = False) -> Array:
    """Compute for each head a small matrix with the singular values of O V.

    Args:
        heads: values and outputs.
        scaled: divide by the Frobenius norm over all heads, as a norm behind the output projection does.

    Returns:
        Shape [H, n, n], n the smaller of h and d.
    """
    o, v = triangle(heads.o), triangle(swapped(heads.v))
    cores = o @ swapped(repeated(v, len(o) // len(v)))
    return cores / nonzero((cores * cores).sum(axis=(0, 1, 2), keepdims=True) ** 0.5) if scaled else cores
