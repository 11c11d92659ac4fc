"""Matrices of a block's function, computed from its stored tensors when they are asked for, where a device says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from specdiag.checkpoint.held_values import compute_once
from specdiag.function.arrays import Array, filled, joined, permuted
from specdiag.function.attention import HeadNorm, Moving, Scoring, normalised, ov_cores, qk_cores, scoring
from specdiag.function.balance import balance_moving, balance_neurons, balance_scoring
from specdiag.function.folding import Norm, fold_reader, fold_writer
from specdiag.function.mlp import centred_router, du_core, homogeneous
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import StoredNorm, Weight


def qk(block: Block, attention: Attention, device: str) -> Array:
    """Compute the cores of Q'K of all heads, shape [H, n, n].

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    return qk_cores(normalised_scores(block, attention, device))


def ov(block: Block, attention: Attention, device: str) -> Array:
    """Compute the cores of O V of all heads, shape [H, n, n].

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    return ov_cores(moves(block, attention, device), scaled=attention.out is not None)


def du(block: Block, mlp: Mlp, device: str) -> Array:
    """Compute a matrix with the singular values of down times up, shape [n, n].

    Args:
        block: wiring.
        mlp: of that block, of which neurons can be rescaled.
        device: on which it is computed.
    """
    up, down = compute_once(_neurons, block, mlp, device)
    if mlp.out is not None:
        down = write(block, mlp, device)
    return du_core(up, homogeneous(up, down, mlp.power or 1), scaled=mlp.out is not None)


def read(weight: Weight, norm: StoredNorm | None, device: str) -> Array:
    """Compute a matrix that reads the stream with the norm in front folded in, its bias as the last column.

    Args:
        weight: shape (n, d).
        norm: in front of it.
        device: on which it is computed.
    """
    return fold_reader(weight.read(device), _read(norm, device)).with_bias


def write(block: Block, mlp: Mlp, device: str) -> Array:
    """Compute the matrix of an MLP that writes to the stream, shape [d, m].

    Args:
        block: wiring.
        mlp: of that block.
        device: on which it is computed.
    """
    gain = None if mlp.out is None else mlp.out.read(device).gain
    return fold_writer(mlp.down.read(device).weight, is_layer=block.wiring.norm == "layer", gain=gain)


def router(weight: Weight, norm: StoredNorm | None, device: str) -> Array:
    """Compute a router without what a softmax does not see, shape [experts, d].

    Args:
        weight: of the router.
        norm: in front of it.
        device: on which it is computed.
    """
    return centred_router(fold_reader(weight.read(device), _read(norm, device)).weight)


def balanced_scoring(block: Block, attention: Attention, device: str) -> Array:
    """Compute queries and keys in balance, without biases, one after the other in one axis.

    Norms of queries and keys leave the scale of a head, or of all heads, and no other freedom.

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    heads, width = compute_once(scores, block, attention, device), attention.q.shape[1]
    if attention.head_norms is None:
        heads = balance_scoring(heads)
    else:
        q, k = (filled(norm.read(device).gain, 1.0) for norm in attention.head_norms)
        heads = normalised(heads, HeadNorm(q_gain=q, k_gain=k))
    return joined([side[..., :width].reshape(-1) for side in (heads.q, heads.k)])


def balanced_moving(block: Block, attention: Attention, device: str) -> Array:
    """Compute values and outputs in balance, one after the other in one axis.

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    heads = balance_moving(compute_once(_moving, block, attention, device))
    return joined([heads.v.reshape(-1), permuted(heads.o, 1, 0, 2).reshape(-1)])


def balanced_mlp(block: Block, mlp: Mlp, roles: Collection[str], device: str) -> Array:
    """Compute gate, up and down in balance, without biases, one after the other in one axis.

    Neurons that can be rescaled are balanced.

    Args:
        block: wiring.
        mlp: of that block.
        roles: those that are wanted.
        device: on which it is computed.
    """
    up, down = compute_once(_neurons, block, mlp, device)
    if mlp.power is not None:
        up, down = balance_neurons(up, down, mlp.power)
    found = {"up": up, "down": down}
    if mlp.gate is not None and "gate" in roles:
        found = {"gate": read(mlp.gate, mlp.norm, device)[:, : mlp.up.shape[1]], **found}
    return joined([values.reshape(-1) for role, values in found.items() if role in roles])


def _neurons(block: Block, mlp: Mlp, device: str) -> tuple[Array, Array]:
    """Compute up without its bias, shape [m, d], and down without what follows it, shape [d, m]."""
    down = fold_writer(mlp.down.read(device).weight, is_layer=block.wiring.norm == "layer")
    return read(mlp.up, mlp.norm, device)[:, : mlp.up.shape[1]], down


def scores(block: Block, attention: Attention, device: str) -> Scoring:
    """Give queries and keys of all heads with the norms in front folded in.

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    return scoring(
        fold_reader(attention.q.read(device), _read(attention.norm, device)),
        fold_reader(attention.k.read(device), _read(attention.kv_norm, device)),
        attention.heads,
        rope=None if attention.n_rotated == 0 else block.wiring.rope,
        n_rotated=attention.n_rotated,
    )


def _moving(block: Block, attention: Attention, device: str) -> Moving:
    head_dim, width = attention.head_dim, attention.v.shape[1]
    v = fold_reader(attention.v.read(device), _read(attention.kv_norm, device)).weight
    o = fold_writer(attention.o.read(device).weight, is_layer=block.wiring.norm == "layer")
    return Moving(v=v.reshape(-1, head_dim, width), o=permuted(o.reshape(width, attention.heads, head_dim), 1, 0, 2))


def _read(norm: StoredNorm | None, device: str) -> Norm | None:
    return None if norm is None else norm.read(device)


def normalised_scores(block: Block, attention: Attention, device: str) -> Scoring:
    """Give queries and keys of all heads with the norms in front and those of their own folded in.

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    heads = compute_once(scores, block, attention, device)
    if attention.head_norms is None:
        return heads
    q, k = attention.head_norms
    return normalised(heads, HeadNorm(q_gain=q.read(device).gain, k_gain=k.read(device).gain))


def moves(block: Block, attention: Attention, device: str) -> Moving:
    """Give values and outputs of all heads with the norms around them folded in.

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.
    """
    heads = compute_once(_moving, block, attention, device)
    return heads if attention.out is None else replace(heads, o=heads.o * attention.out.read(device).gain[:, None])
