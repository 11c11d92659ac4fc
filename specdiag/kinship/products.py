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
from specdiag.function.folding import Array
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
        found = [float(t[i, j] / np.sqrt(t[i, i] * t[j, j])) for t in self.kinds if t[i, i] > 0 and t[j, j] > 0]
        return min(found, default=0.0)


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
    qk = None if is_open else _of_heads([_qk(b) for b in blocks], orders, device)
    ov = _of_heads([_ov(b) for b in blocks], orders, device)
    has_one = all(len(b.mlps) == 1 for b in blocks)
    return Products(qk, ov, _of_matrices([_du(b, device) for b in blocks]) if has_one else None)


def _of_heads(factors: Sequence[Factors], orders: Sequence[Order], device: str) -> Array:
    sides = [(left[list(order)], right[list(order)]) for (left, right), order in zip(factors, orders, strict=True)]
    multiply = _on_cpu if device in ("cpu", "mps") else _on_device
    table = np.zeros((len(sides), len(sides)))
    for i, one in enumerate(sides):
        for j, other in enumerate(sides[: i + 1]):
            table[i, j] = table[j, i] = multiply(one, other, device)
    return table


def _on_cpu(one: Factors, other: Factors, _: str) -> float:
    left, right = (np.matmul(a, b.transpose(0, 2, 1)) for a, b in zip(one, other, strict=True))
    return float(np.vdot(left, right))


def _on_device(one: Factors, other: Factors, device: str) -> float:
    import torch

    pairs = (
        [torch.from_numpy(np.ascontiguousarray(side)).to(device) for side in pair]
        for pair in zip(one, other, strict=True)
    )
    left, right = (a @ b.mT for a, b in pairs)
    return float((left * right).sum())


def _of_matrices(matrices: Sequence[Array]) -> Array:
    flat = [matrix.reshape(-1) for matrix in matrices]
    return np.array([[float(np.dot(a, b)) for b in flat] for a in flat])


def _qk(block: Block) -> Factors:
    assert block.attention is not None
    heads, width = effective.scores(block, block.attention), block.attention.q.shape[1]
    q, k = heads.q[..., :width], heads.k[..., :width]
    return q, np.repeat(k, len(q) // len(k), axis=0)


def _ov(block: Block) -> Factors:
    assert block.attention is not None
    heads = effective.moves(block, block.attention)
    o = heads.o.transpose(0, 2, 1)
    return o, np.repeat(heads.v, len(o) // len(heads.v), axis=0)


def _du(block: Block, device: str) -> Array:
    (mlp,) = block.mlps
    up = effective.read(mlp.up, mlp.norm)[:, : mlp.up.shape[1]]
    down = homogeneous(up, effective.write(block, mlp), mlp.power or 1)
    if device in ("cpu", "mps"):
        return down @ up
    import torch

    product = torch.from_numpy(down).to(device) @ torch.from_numpy(np.ascontiguousarray(up)).to(device)
    return product.cpu().numpy()
