"""Bounds of attention scores, for any text: how large q.k can get in a head, from its weights alone.

A score is (Qx + b)' R_t (Ky + c) s, x and y of length at most sqrt(d), R_t the rotation of the positions and s the
scale of the head, 1/sqrt(h). A large score saturates the softmax; one above the largest value of a type overflows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdiag.function.algebra import Algebra
from specdiag.function.arrays import Array, larger, norms, on_host, placed, repeated, swapped
from specdiag.function.attention import HeadNorm, Scoring
from specdiag.function.balance import balance_scoring
from specdiag.function.decompositions import triangle


@dataclass(frozen=True, slots=True)
class Rotation:
    """The positions at which scores are bounded.

    Attributes:
        frequencies: of each plane, shape [n_rotated / 2], in radians a position.
        offsets: position of the key less that of the query.
    """

    frequencies: Array
    offsets: Sequence[int]


def bounds_everywhere(heads: Scoring, width: int, scale: float, algebra: Algebra) -> Array:
    """Bound the scores of each head at all positions.

    With rotary positions: s(sqrt(d) sigma_max(Q) + |b|)(sqrt(d) sigma_max(K) + |c|), Q and K in balance. Without them
    Q'K is known as a whole, and the bound is that at position 0.

    Args:
        heads: queries and keys, biases as the last column where there are any.
        width: d.
        scale: s.
        algebra: that computes.

    Returns:
        Shape [H].
    """
    if not heads.n_rotated:
        return bounds_at(heads, width, scale, None, algebra)
    even = balance_scoring(heads)
    q, k = (_reach(side, width, algebra) for side in (even.q, even.k))
    return scale * q * repeated(k, len(q) // len(k))


def bounds_at(heads: Scoring, width: int, scale: float, rotation: Rotation | None, algebra: Algebra) -> Array:
    """Bound the scores of each head at some positions, the largest over them.

    s(d sigma_max(Q'R_t K) + sqrt(d)(|K'R_t'b| + |Q'R_t c|) + |b'R_t c|).

    Args:
        heads: queries and keys, biases as the last column where there are any.
        width: d.
        scale: s.
        rotation: the positions; None for none.
        algebra: that computes.

    Returns:
        Shape [H].
    """
    per = len(heads.q) // len(heads.k)
    b, c = heads.q[..., width:], repeated(heads.k[..., width:], per)
    q_triangle, k_triangle = (_triangle(side[..., :width]) for side in (heads.q, heads.k))
    k_triangle = repeated(k_triangle, per)
    found: Array | None = None
    for turn in (placed(turn, algebra.device) for turn in _turns(heads, rotation)):
        bound = width * algebra.largest(q_triangle @ turn @ swapped(k_triangle))
        if c.shape[2]:
            bound = bound + width**0.5 * norms(q_triangle @ turn @ c, 1, 2)
        if b.shape[2]:
            bound = bound + width**0.5 * norms(k_triangle @ turn.T @ b, 1, 2)
        if b.shape[2] and c.shape[2]:
            bound = bound + abs(swapped(b) @ turn @ c)[:, 0, 0]
        found = bound if found is None else larger(found, bound)
    assert found is not None
    return scale * found


def bounds_of_norms(heads: Scoring, norm: HeadNorm, scale: float) -> Array:
    """Bound the scores of heads whose queries and keys have norms: s h max over planes of max|g_q| max|g_k|.

    Norms over all heads together leave one of them a length of sqrt(H h), which counts instead of sqrt(h).

    Args:
        heads: their sizes and planes.
        norm: gains.
        scale: s.

    Returns:
        Shape [H].
    """
    n, head_dim, _ = heads.q.shape
    q, k = (np.abs(on_host(gain)).reshape(-1, head_dim) for gain in (norm.q_gain, norm.k_gain))
    length = (q.size * k.size) ** 0.5
    k = np.repeat(k, len(q) // len(k), axis=0)
    of_q, of_k = (heads.by_plane(side[..., None])[..., 0].max(axis=2) for side in (q, k))
    of_planes = of_q * of_k
    rest = q[:, heads.n_rotated :] * k[:, heads.n_rotated :]
    return np.broadcast_to(scale * length * np.concatenate([of_planes, rest], axis=1).max(axis=1), (n,)).copy()


def _reach(sides: Array, width: int, algebra: Algebra) -> Array:
    bias = norms(sides[..., width:], 1, 2)
    return width**0.5 * algebra.largest(sides[..., :width]) + bias


def _triangle(sides: Array) -> Array:
    """R' of the QR of each transposed side, with the same singular values from the left, shape [H, n, h]."""
    return triangle(swapped(sides))


def _turns(heads: Scoring, rotation: Rotation | None) -> Sequence[Array]:
    """R_t at each position, shape [h, h]."""
    head_dim = heads.q.shape[1]
    if rotation is None:
        return [np.eye(head_dim)]
    turns: list[Array] = []
    first, second = heads.by_plane(np.arange(head_dim)[:, None])[..., 0].T
    for offset in rotation.offsets:
        turn = np.eye(head_dim)
        cosine, sine = np.cos(offset * rotation.frequencies), np.sin(offset * rotation.frequencies)
        turn[first, first], turn[second, second] = cosine, cosine
        turn[first, second], turn[second, first] = -sine, sine
        turns.append(turn)
    return turns
