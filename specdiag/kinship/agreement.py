"""Agreement of two layers beyond spectra and products: what these leave open about one function in two forms.

Rotary positions, the order of gate and up, biases, the router, and tensors that no wiring names: none of them shows in
the spectra. Numbers are 2 a.b / (|a|^2 + |b|^2), 1 for one function. They hold in one basis of the stream alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.function import effective, responses
from specdiag.function.arrays import Array, inner, joined, norms, on_host, placed, repeated, swapped
from specdiag.function.attention import Scoring
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.kinship.distances import HeadPairs
from specdiag.spectra.float_types import FLOAT_TYPES

_PROBES, _OF_EXPERTS = 32, 8
"""Inputs on which MLPs are compared, and experts."""
_FLOOR = 1e-12
"""Share of the largest squared norm below which a head or an expert counts as dead."""

Part = Literal["scores", "outputs", "mlp", "router"]
Order = Sequence[int]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Side:
    """A layer of one of two models.

    Attributes:
        block: its block.
        attention: self-attention of that block, or its cross-attention.
        order: the heads that stand beside those of the other model.
        turn: T of the residual stream from the other model to this one, shape [d, d]; None where it was not turned.
    """

    block: Block
    attention: Attention
    order: Order
    turn: Array | None = None


def attention_agreement(a: Side, b: Side, device: str) -> dict[Part, float]:
    """Compute how far attention of two layers agrees at every distance of positions, biases included.

    Args:
        a: a layer.
        b: another, its heads matched.
        device: where it is computed.

    Raises:
        SourceError: a tensor cannot be read.
    """
    values = [_moving(side, device) for side in (a, b)]
    ordered = [_scoring(side, device) for side in (a, b)]
    table = _tables(_moved, *values)
    size = [float(squares.sum()) ** 0.5 or 1.0 for squares in (table[0], table[2])]
    table /= np.array([[size[0] ** 2], [size[0] * size[1]], [size[1] ** 2]])
    first, second = (
        on_host(_back(responses.constant(side.block, side.attention, device)[None], side.turn, device)) / n
        for side, n in zip((a, b), size, strict=True)
    )
    apart, whole = inner(first - second, first - second), 2 + inner(first, first) + inner(second, second)
    return {"scores": _mean(_tables(_planes, *ordered)), "outputs": min(_mean(table), 1 - apart / whole)}


def mlp_agreement(a: Side, b: Side, device: str) -> dict[Part, float]:
    """Compute how far the MLPs of two layers agree on the same random inputs, experts matched, and their routers.

    The activation is taken as max(x, 0): one that mixes no neurons is as good as another.

    Args:
        a: a layer.
        b: another, with as many experts.
        device: where it is computed.

    Raises:
        SourceError: a tensor cannot be read.
    """
    mlps = a.block.mlps
    if not mlps:
        return {}
    n = _PROBES if len(mlps) == 1 else _OF_EXPERTS
    probes = placed(np.random.default_rng(0).standard_normal((n, mlps[0].up.shape[1])), device)
    sides = [np.stack([_response(side, mlp, probes, device) for mlp in side.block.mlps]) for side in (a, b)]
    rows, cols = _matched(sides[0] @ sides[1].T, *(norms(side, 1) for side in sides))
    pair = [sides[0][rows], sides[1][cols]]
    found: dict[Part, float] = {"mlp": _mean(_tables(_rowwise, *pair))}
    routers = [_router(side, device) for side in (a, b) if side.block.router is not None]
    if len(routers) == 2:
        experts = [[mlp.expert or 0 for mlp in side.block.mlps] for side in (a, b)]
        found["router"] = agreement(routers[0][np.take(experts[0], rows)], routers[1][np.take(experts[1], cols)])
    return found


def agreement(a: Array, b: Array) -> float:
    """Compute 2 a.b / (|a|^2 + |b|^2): the cosine where norms are equal, less where they are not.

    Args:
        a: any shape.
        b: the same.
    """
    total = inner(a, a) + inner(b, b)
    return 2 * inner(a, b) / total if total > 0 else 1.0


def plain_values(tensor: StoredTensor) -> Array | None:
    """Read a tensor as a vector; None where its type is not read or it is large.

    Args:
        tensor: of either model.

    Raises:
        SourceError: it cannot be read.
    """
    if tensor.values_dtype not in FLOAT_TYPES or int(np.prod(tensor.shape)) > 1 << 24:
        return None
    return FLOAT_TYPES[tensor.values_dtype].widen(tensor.read(None), np.dtype(np.float64)).reshape(-1)


def _tables(product: Callable[[T, T], Array], a: T, b: T) -> Array:
    return np.stack([on_host(product(x, y)) for x, y in ((a, a), (a, b), (b, b))])


def _rowwise(a: Array, b: Array) -> Array:
    return (a * b).sum(axis=1)


def _moved(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """Compute the inner products of O V of heads, shape [H]."""
    return ((a[0] @ swapped(b[0])) * (a[1] @ swapped(b[1]))).sum(axis=(1, 2))


def _mean(table: Array) -> float:
    """Average the agreement of pairs, those left out of which both are dead.

    Args:
        table: squared norms of one side, inner products, squared norms of the other; shape [3, n].
    """
    first, both, second = table
    lives = (first > _FLOOR * first.max()) | (second > _FLOOR * second.max())
    return float((2 * both[lives] / (first + second)[lives]).mean()) if lives.any() else 1.0


def _matched(products: Array, of_a: Array, of_b: Array) -> HeadPairs:
    from scipy.optimize import linear_sum_assignment

    size = of_a[:, None] * of_b[None]
    cosines = np.divide(products, size, out=np.zeros_like(products), where=size > 0)
    return linear_sum_assignment(-cosines)


def _scoring(side: Side, device: str) -> Scoring:
    """Give queries and keys in the order and the basis of the other model, one key a head."""
    heads, order = effective.normalised_scores(side.block, side.attention, device), list(side.order)
    keys = repeated(heads.k, len(heads.q) // len(heads.k))
    return replace(heads, q=_back(heads.q[order], side.turn, device), k=_back(keys[order], side.turn, device))


def _moving(side: Side, device: str) -> tuple[Array, Array]:
    """Give outputs, transposed, and values of heads in the order and the basis of the other model, shape [H, h, d]."""
    heads, order = effective.moves(side.block, side.attention, device), list(side.order)
    values = repeated(heads.v, len(heads.o) // len(heads.v))
    return _back(swapped(heads.o)[order], side.turn, device), _back(values[order], side.turn, device)


def _response(side: Side, mlp: Mlp, probes: Array, device: str) -> Array:
    inputs = probes if side.turn is None else probes @ placed(side.turn, device)
    found = responses.response(side.block, mlp, swapped(inputs), device)
    return on_host(_back(swapped(found), side.turn, device)).ravel()


def _router(side: Side, device: str) -> Array:
    assert side.block.router is not None
    return on_host(_back(responses.router_with_bias(*side.block.router, device), side.turn, device))


def _back(rows: Array, turn: Array | None, device: str) -> Array:
    """Turn rows of the stream back, shape [..., d], and leave a column of biases behind them as it is."""
    if turn is None:
        return rows
    width, back = len(turn), placed(turn.T, device)
    return joined([rows[..., :width] @ back, rows[..., width:]], -1)


def _planes(a: Scoring, b: Scoring) -> Array:
    """Compute the inner products of Q'K and of Q'JK, J a quarter turn, over rotary planes; of Q'K over other rows.

    Scores at all distances are sums of these over planes, with weights of their own in each.

    Args:
        a: queries and keys, one key a head.
        b: likewise.

    Returns:
        Shape [H].
    """
    n = a.n_rotated
    (q, k), (p, m) = ((side.q, side.k) for side in (a, b))
    q, p = _alike(q, p)
    k, m = _alike(k, m)
    left, right = q[:, n:] @ swapped(p[:, n:]), k[:, n:] @ swapped(m[:, n:])
    total = (left * right).sum(axis=(1, 2))
    if n:
        left = a.by_plane(q) @ swapped(b.by_plane(p))
        right = a.by_plane(k) @ swapped(b.by_plane(m))
        turned = joined([joined([right[..., 1:, 1:], -right[..., 1:, :1]], -1),
                         joined([-right[..., :1, 1:], right[..., :1, :1]], -1)], -2)  # fmt: skip
        total = total + (left * (right + turned)).sum(axis=(1, 2, 3))
    return total


def _alike(a: Array, b: Array) -> tuple[Array, Array]:
    """Give both a column of biases where one has it."""
    short = min(a.shape[-1], b.shape[-1])
    if a.shape[-1] == b.shape[-1]:
        return a, b
    return (a, _with_zeros(b)) if b.shape[-1] == short else (_with_zeros(a), b)


def _with_zeros(side: Array) -> Array:
    return joined([side, side[..., :1] * 0], -1)
