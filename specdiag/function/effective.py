"""Matrices of a block's function, computed from its stored tensors when they are asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from specdiag.function.attention import HeadNorm, Moving, Scoring, normalised, ov_cores, qk_cores, scoring
from specdiag.function.balance import balance_moving, balance_neurons, balance_scoring
from specdiag.function.folding import Array, Norm, fold_reader, fold_writer
from specdiag.function.mlp import centred_router, du_core, homogeneous
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import StoredNorm, Weight


def qk(block: Block, attention: Attention) -> Array:
    """Compute the cores of Q'K of all heads, shape [H, n, n].

    Args:
        block: wiring.
        attention: of that block.
    """
    heads = _scoring(block, attention)
    if attention.head_norms is not None:
        q, k = attention.head_norms
        heads = normalised(heads, HeadNorm(q_gain=q.read().gain, k_gain=k.read().gain))
    return qk_cores(heads)


def ov(block: Block, attention: Attention) -> Array:
    """Compute the cores of O V of all heads, shape [H, n, n].

    Args:
        block: wiring.
        attention: of that block.
    """
    moving = _moving(block, attention)
    if attention.out is None:
        return ov_cores(moving)
    gain = attention.out.read().gain[:, None]
    return ov_cores(replace(moving, o=moving.o * gain), scaled=True)


def du(block: Block, mlp: Mlp) -> Array:
    """Compute a matrix with the singular values of down times up, shape [n, n].

    Args:
        block: wiring.
        mlp: of that block, of which neurons can be rescaled.
    """
    up, down = read(mlp.up, mlp.norm)[:, : mlp.up.shape[1]], write(block, mlp)
    return du_core(up, homogeneous(up, down, mlp.power or 1), scaled=mlp.out is not None)


def read(weight: Weight, norm: StoredNorm | None) -> Array:
    """Compute a matrix that reads the stream with the norm in front folded in, its bias as the last column.

    Args:
        weight: shape (n, d).
        norm: in front of it.
    """
    return fold_reader(weight.read(), _read(norm)).with_bias


def write(block: Block, mlp: Mlp) -> Array:
    """Compute the matrix of an MLP that writes to the stream, shape [d, m].

    Args:
        block: wiring.
        mlp: of that block.
    """
    gain = None if mlp.out is None else mlp.out.read().gain
    return fold_writer(mlp.down.read().weight, is_layer=block.wiring.norm == "layer", gain=gain)


def router(weight: Weight, norm: StoredNorm | None) -> Array:
    """Compute a router without what a softmax does not see, shape [experts, d].

    Args:
        weight: of the router.
        norm: in front of it.
    """
    return centred_router(fold_reader(weight.read(), _read(norm)).weight)


def balanced_scoring(block: Block, attention: Attention) -> Array:
    """Compute queries and keys in balance, without biases, one above the other, shape [H h + groups h, d].

    Norms of queries and keys leave the scale of a head, or of all heads, and no other freedom.

    Args:
        block: wiring.
        attention: of that block.
    """
    heads, width = _scoring(block, attention), attention.q.shape[1]
    if attention.head_norms is None:
        heads = balance_scoring(heads)
    else:
        q, k = attention.head_norms
        heads = normalised(heads, HeadNorm(q_gain=np.ones(q.gain.shape), k_gain=np.ones(k.gain.shape)))
    return np.concatenate([side[..., :width].reshape(-1, width) for side in (heads.q, heads.k)])


def balanced_moving(block: Block, attention: Attention) -> Array:
    """Compute values and outputs in balance, one above the other, the latter transposed: [groups h + H h, d].

    Args:
        block: wiring.
        attention: of that block.
    """
    heads, width = balance_moving(_moving(block, attention)), attention.v.shape[1]
    return np.concatenate([heads.v.reshape(-1, width), heads.o.transpose(0, 2, 1).reshape(-1, width)])


def balanced_mlp(block: Block, mlp: Mlp) -> Array:
    """Compute gate, up and down in balance, without biases, one above the other, the last transposed.

    Neurons that can be rescaled are balanced.

    Args:
        block: wiring.
        mlp: of that block.

    Returns:
        Shape [3 m, d], or [2 m, d] without a gate.
    """
    width = mlp.up.shape[1]
    up = read(mlp.up, mlp.norm)[:, :width]
    down = fold_writer(mlp.down.read().weight, is_layer=block.wiring.norm == "layer")
    if mlp.power is None:
        return np.concatenate([up, down.T])
    up, down = balance_neurons(up, down, mlp.power or 1)
    if mlp.gate is None:
        return np.concatenate([up, down.T])
    return np.concatenate([read(mlp.gate, mlp.norm)[:, :width], up, down.T])


def _scoring(block: Block, attention: Attention) -> Scoring:
    return scoring(
        fold_reader(attention.q.read(), _read(attention.norm)),
        fold_reader(attention.k.read(), _read(attention.kv_norm)),
        attention.heads,
        rope=None if attention.n_rotated == 0 else block.wiring.rope,
        n_rotated=attention.n_rotated,
    )


def _moving(block: Block, attention: Attention) -> Moving:
    head_dim, width = attention.head_dim, attention.v.shape[1]
    v = fold_reader(attention.v.read(), _read(attention.kv_norm)).weight
    o = fold_writer(attention.o.read().weight, is_layer=block.wiring.norm == "layer")
    return Moving(v=v.reshape(-1, head_dim, width), o=o.reshape(width, attention.heads, head_dim).transpose(1, 0, 2))


def _read(norm: StoredNorm | None) -> Norm | None:
    return None if norm is None else norm.read()


def scores(block: Block, attention: Attention) -> Scoring:
    """Give queries and keys of all heads with the norms in front folded in.

    Args:
        block: wiring.
        attention: of that block.
    """
    return _scoring(block, attention)


def moves(block: Block, attention: Attention) -> Moving:
    """Give values and outputs of all heads with the norms around them folded in.

    Args:
        block: wiring.
        attention: of that block.
    """
    heads = _moving(block, attention)
    return heads if attention.out is None else replace(heads, o=heads.o * attention.out.read().gain[:, None])
