"""The balanced form of a block: a form in which it could be stored, fixed by what it computes.

Inner coordinates of heads are such that both sides carry the same singular values, rotary planes such that queries and
keys have the same norm in each, neurons such that up and down have the same norm. What is left are orthogonal factors,
which change no spectrum.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from specdiag.function.attention import Moving, Scoring
from specdiag.function.folding import Array


def balance_moving(heads: Moving) -> Moving:
    """Take O and V of each group from the halves U S^1/2 and S^1/2 W' of its O V.

    Args:
        heads: values and outputs.
    """
    groups, head_dim, _ = heads.v.shape
    o = heads.o.reshape(groups, -1, head_dim)
    left, right = _halves(o, heads.v.transpose(0, 2, 1))
    return Moving(v=right.transpose(0, 2, 1), o=left.reshape(heads.o.shape))


def balance_scoring(heads: Scoring) -> Scoring:
    """Give queries and keys the same norm in each rotary plane, and the halves of Q'K to rows that are not rotated.

    Args:
        heads: queries and keys.
    """
    groups, head_dim, _ = heads.k.shape
    q, k = heads.q.reshape(groups, -1, head_dim, heads.q.shape[-1]).copy(), heads.k.copy()
    for rows in heads.planes:
        of_q = np.linalg.norm(q[:, :, rows].reshape(groups, -1), axis=1)
        of_k = np.linalg.norm(k[:, rows].reshape(groups, -1), axis=1)
        common = np.sqrt(of_q * of_k)
        q[:, :, rows] *= _ratio(common, of_q)[:, None, None, None]
        k[:, rows] *= _ratio(common, of_k)[:, None, None]
    n = heads.n_rotated
    if n < head_dim:
        rest = q[:, :, n:].transpose(0, 1, 3, 2)
        left, right = _halves(rest.reshape(groups, -1, head_dim - n), k[:, n:].transpose(0, 2, 1))
        q[:, :, n:] = left.reshape(rest.shape).transpose(0, 1, 3, 2)
        k[:, n:] = right.transpose(0, 2, 1)
    return replace(heads, q=q.reshape(heads.q.shape), k=k)


def balance_neurons(up: Array, down: Array, power: int = 1) -> tuple[Array, Array]:
    """Give up and down the same norm in each neuron.

    Args:
        up: shape [m, d].
        down: shape [d, m].
        power: p where up times s and down times s^-p compute the same.
    """
    of_up, of_down = np.linalg.norm(up, axis=1), np.linalg.norm(down, axis=0)
    common = np.sqrt(of_up * of_down) if power == 1 else (of_up**power * of_down) ** (1 / (1 + power))
    return up * _ratio(common, of_up)[:, None], down * _ratio(common, of_down)


def _halves(left: Array, right: Array) -> tuple[Array, Array]:
    """Compute U S^1/2 and W S^1/2 of left right' = U S W' for each group, shapes [groups, n, h] and [groups, d, h]."""
    q_left, r_left = np.linalg.qr(left)
    q_right, r_right = np.linalg.qr(right)
    u, sigma, w = np.linalg.svd(r_left @ r_right.transpose(0, 2, 1))
    root = np.sqrt(sigma)[:, None, :]
    n = root.shape[-1]
    return q_left @ (u[..., :n] * root), q_right @ (w.transpose(0, 2, 1)[..., :n] * root)


def _ratio(part: Array, whole: Array) -> Array:
    return part / np.where(whole > 0, whole, 1.0)
