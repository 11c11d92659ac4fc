"""The products themselves: QK, OV and down times up of a layer in several models, by their inner products.

For a head <Q'K, P'L> is the sum of (Q P') * (K L'): no product of the width squared is formed but for the MLP. A
product stays the same under every change of form but a turn of the residual stream: a cosine near 1 shows one block in
two forms, and one near 0 two blocks, or a turned stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdiag.function import effective
from specdiag.function.arrays import Array, inner, repeated, swapped
from specdiag.function.mlp import homogeneous
from specdiag.function.parts import Block

Factors = tuple[Array, Array]
"""Left and right [H, n, d] of the products L'R of all heads."""
Order = Sequence[int]
"""For each head of the first model the head that stands for it."""


@dataclass(frozen=True, slots=True)
class Products:
    """Inner products of a layer in k models, shape [k, k] each.

    Attributes:
        qk: summed over heads; None where norms of queries and keys leave its scale open.
        ov: likewise.
        du: of down times up; None where a model has no MLP, or experts.
    """

    qk: Array | None
    ov: Array
    du: Array | None

    @property
    def kinds(self) -> list[Array]:
        """Those that there are."""
        return [table for table in (self.qk, self.ov, self.du) if table is not None]

    def cosine(self, i: int, j: int) -> float:
        """Compute the least cosine of two models over the kinds of products.

        Args:
            i: place of a model.
            j: place of another.
        """
        return min(self._cosines(i, j), default=0.0)

    def largest(self, i: int, j: int) -> float:
        """Compute the largest of these cosines: small where the residual stream was turned.

        Args:
            i: place of a model.
            j: place of another.
        """
        return max(self._cosines(i, j), default=0.0)

    def _cosines(self, i: int, j: int) -> list[float]:
        return [float(t[i, j] / np.sqrt(t[i, i] * t[j, j])) for t in self.kinds if t[i, i] > 0 and t[j, j] > 0]


def inner_products(blocks: Sequence[Block], orders: Sequence[Order], device: str) -> Products:
    """Compute the inner products of a layer in several models. Products of one kind are held at a time.

    Args:
        blocks: the layer in each model, all of one width; all have attention.
        orders: for each model the heads that stand for those of the first.
        device: where it is computed; MPS has no float64, and leaves it to the CPU.

    Raises:
        SourceError: a tensor cannot be read.
    """
    is_open = any(b.attention is None or b.attention.head_norms is not None for b in blocks)
    qk = None if is_open else _of_heads([_qk(b, device) for b in blocks], orders)
    ov = _of_heads([_ov(b, device) for b in blocks], orders)
    has_one = all(len(b.mlps) == 1 for b in blocks)
    return Products(qk, ov, _of_matrices([_du(b, device) for b in blocks]) if has_one else None)


def turned_cosine(blocks: Sequence[Block], orders: Sequence[Order], device: str) -> float | None:
    """Compute the cosine of QK of one layer with KQ of another: 1 where queries and keys changed places.

    Args:
        blocks: the layer in two models of one width; both have attention.
        orders: for each model the heads that stand for those of the first.
        device: where it is computed.

    Returns:
        None where norms of queries and keys leave its scale open, or keys are shared by several heads.

    Raises:
        SourceError: a tensor cannot be read.
    """
    held = [b.attention for b in blocks if b.attention is not None and b.attention.head_norms is None]
    if len(held) < len(blocks) or any(a.q.shape != a.k.shape for a in held):
        return None
    first, (left, right) = (_qk(block, device) for block in blocks)
    table = _of_heads([first, (right, left)], orders)
    return float(table[0, 1] / np.sqrt(table[0, 0] * table[1, 1])) if table[0, 0] > 0 and table[1, 1] > 0 else None


def _of_heads(factors: Sequence[Factors], orders: Sequence[Order]) -> Array:
    sides = [(left[list(order)], right[list(order)]) for (left, right), order in zip(factors, orders, strict=True)]
    table = np.zeros((len(sides), len(sides)))
    for i, one in enumerate(sides):
        for j, other in enumerate(sides[: i + 1]):
            left, right = (a @ swapped(b) for a, b in zip(one, other, strict=True))
            table[i, j] = table[j, i] = inner(left, right)
    return table


def _of_matrices(matrices: Sequence[Array]) -> Array:
    return np.array([[inner(a, b) for b in matrices] for a in matrices])


def _qk(block: Block, device: str) -> Factors:
    assert block.attention is not None
    heads, width = effective.scores(block, block.attention, device), block.attention.q.shape[1]
    q, k = heads.q[..., :width], heads.k[..., :width]
    return q, repeated(k, len(q) // len(k))


def _ov(block: Block, device: str) -> Factors:
    assert block.attention is not None
    heads = effective.moves(block, block.attention, device)
    o = swapped(heads.o)
    return o, repeated(heads.v, len(o) // len(heads.v))


def _du(block: Block, device: str) -> Array:
    (mlp,) = block.mlps
    up = effective.read(mlp.up, mlp.norm, device)[:, : mlp.up.shape[1]]
    return homogeneous(up, effective.write(block, mlp, device), mlp.power or 1) @ up
