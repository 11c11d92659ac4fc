"""The balanced form of a block: a form in which it could be stored, fixed by what it computes.

Inner coordinates of heads are such that both sides carry the same singular values, rotary planes such that queries and
keys have the same norm in each, neurons such that up and down have the same norm. What is left are orthogonal factors,
which change no spectrum.
"""

from __future__ import annotations

from dataclasses import replace

from specdiag.function.arrays import Array, joined, nonzero, norms, swapped
from specdiag.function.attention import Moving, Scoring
from specdiag.function.decompositions import orthogonal, singular


def balance_moving(heads: Moving) -> Moving:
    """Take O and V of each group from the halves U S^1/2 and S^1/2 W' of its O V.

    Args:
        heads: values and outputs.
    """
    groups, head_dim, _ = heads.v.shape
    o = heads.o.reshape(groups, -1, head_dim)
    left, right = _halves(o, swapped(heads.v))
    return Moving(v=swapped(right), o=left.reshape(heads.o.shape))


def balance_scoring(heads: Scoring) -> Scoring:
    """Give queries and keys the same norm in each rotary plane, and the halves of Q'K to rows that are not rotated.

    Args:
        heads: queries and keys.
    """
    groups, head_dim, _ = heads.k.shape
    q, k, n = heads.q.reshape(groups, -1, head_dim, heads.q.shape[-1]), heads.k, heads.n_rotated
    if n:
        of_q, of_k = norms(heads.by_plane(q), 1, 3, 4), norms(heads.by_plane(k), 2, 3)
        common = (of_q * of_k) ** 0.5
        q = q * heads.by_row(common / nonzero(of_q))[:, None, :, None]
        k = k * heads.by_row(common / nonzero(of_k))[:, :, None]
    if n < head_dim:
        rest = swapped(q[:, :, n:])
        left, right = _halves(rest.reshape(groups, -1, head_dim - n), swapped(k[:, n:]))
        q = joined([q[:, :, :n], swapped(left.reshape(rest.shape))], 2)
        k = joined([k[:, :n], swapped(right)], 1)
    return replace(heads, q=q.reshape(heads.q.shape), k=k)


def balance_neurons(up: Array, down: Array, power: int = 1) -> tuple[Array, Array]:
    """Give up and down the same norm in each neuron.

    Args:
        up: shape [m, d].
        down: shape [d, m].
        power: p where up times s and down times s^-p compute the same.
    """
    of_up, of_down = norms(up, 1), norms(down, 0)
    common = (of_up**power * of_down) ** (1 / (1 + power))
    return up * (common / nonzero(of_up))[:, None], down * (common / nonzero(of_down))


def _halves(left: Array, right: Array) -> tuple[Array, Array]:
    """Compute U S^1/2 and W S^1/2 of left right' = U S W' for each group, shapes [groups, n, h] and [groups, d, h]."""
    (q_left, r_left), (q_right, r_right) = orthogonal(left), orthogonal(right)
    u, sigma, w = singular(r_left @ swapped(r_right))
    root = sigma[:, None, :] ** 0.5
    n = root.shape[-1]
    halves = q_left @ (u[..., :n] * root), q_right @ (swapped(w)[..., :n] * root)
    if n == left.shape[-1]:
        return halves
    rest = left.shape[-1] - n  # heads with more rows than the stream has channels
    return joined([halves[0], left[..., :rest] * 0], -1), joined([halves[1], right[..., :rest] * 0], -1)
