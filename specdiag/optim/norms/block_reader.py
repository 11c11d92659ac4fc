"""Figures of one block's attention or MLP, from whole Parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import StoredNorm, Weight
from specdiag.optim.norms.head_figures import Heads, qk_stable_ranks, score_bounds
from specdiag.trajectories.function_alerts import QK_STABLE_RANK, SCORE_BOUND


@dataclass(frozen=True, slots=True)
class LiveAttention:
    """An attention whose heads are watched.

    Attributes:
        path: of its module.
        block: that it is a part of.
        attention: its matrices.
        feeding: the norm whose output it reads; None for the raw stream.
        scale: of its scores; None where nothing bounds them.
    """

    path: str
    block: Block
    attention: Attention
    feeding: StoredNorm | None
    scale: float | None


class BlockReader:
    """Reads the matrices of blocks from whole Parameters."""

    def __init__(self, present: Mapping[str, torch.Tensor]) -> None:
        """Begin without reading.

        Args:
            present: whole Parameters by name.
        """
        self._parameters = present

    def figures(self, each: LiveAttention) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield metrics of an attention, each with the numbers of its heads, shape [H].

        Args:
            each: whose matrices are present.
        """
        attention = each.attention
        heads = self._heads(each, attention.norm)
        gains = None
        if attention.head_norms is not None:
            q, k = (self._gain(norm) for norm in attention.head_norms)
            gains = q, k
        yield QK_STABLE_RANK, qk_stable_ranks(heads, gains)
        if each.scale is None:
            return
        if gains is not None:
            yield SCORE_BOUND, _bounds_of_norms(heads, gains, each.scale)
        else:
            same = each.feeding is attention.norm
            yield SCORE_BOUND, score_bounds(heads if same else self._heads(each, each.feeding), each.scale)

    def row_squares(self, block: Block, mlp: Mlp) -> torch.Tensor:
        """Compute the square norms of the rows of down, neurons in balance, as `specdiag.function.mlp_alarms`.

        Args:
            block: of the MLP.
            mlp: whose matrices are present.

        Returns:
            Shape [d].
        """
        down, _ = self._read(mlp.down)
        if block.wiring.norm == "layer":
            down = down - down.mean(dim=0)
        squares = down.square()
        if mlp.power is not None:
            up, _ = self._folded(mlp.up, mlp.norm)
            of_up, of_down = up.square().sum(dim=1), squares.sum(dim=0)
            lives = (of_up > 0) & (of_down > 0)
            common = (of_up**mlp.power * of_down) ** (1 / (1 + mlp.power))
            rows = squares @ torch.where(lives, common / of_down, torch.zeros_like(common))
        else:
            rows = squares.sum(dim=1)
        if mlp.out is None:
            return rows
        return rows / rows.sum().clamp_min(torch.finfo(rows.dtype).tiny) * self._gain(mlp.out).square()

    def _heads(self, each: LiveAttention, norm: StoredNorm | None) -> Heads:
        attention, head_dim = each.attention, each.attention.head_dim
        (q, b), (k, c) = (self._folded(weight, norm) for weight in (attention.q, attention.k))
        q, k = (side.reshape(-1, head_dim, side.shape[1]) for side in (q, k))
        b, c = (bias.reshape(-1, head_dim) for bias in (b, c))
        n = attention.n_rotated
        c = torch.cat([c[:, :n], torch.zeros_like(c[:, n:])], dim=1)
        return Heads(q=q, k=k, q_bias=b, k_bias=c, rope=each.block.wiring.rope if n else None, n_rotated=n)

    def _folded(self, weight: Weight, norm: StoredNorm | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a matrix with the norm in front folded in, and its bias, zeros without one."""
        values, bias = self._read(weight)
        if norm is None:
            return values, bias
        if norm.bias is not None:
            bias = bias + values @ self._vector(norm.bias.name, values)
        folded = values * self._gain(norm).to(values)
        return folded - folded.mean(dim=1, keepdim=True) if norm.is_layer else folded, bias

    def _read(self, weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
        tensor, slicer = self._parameters[weight.matrix.name].detach(), weight.matrix.slicer
        raw = slicer.cut(tensor if slicer.index is None else tensor[slicer.index])[0]
        raw = raw.mT if weight.transposed else raw
        values = raw if raw.dtype == torch.float64 else raw.float()
        if weight.bias is None:
            return values, values.new_zeros(len(values))
        return values, weight.own_part(self._vector(weight.bias.name, values))

    def _gain(self, norm: StoredNorm) -> torch.Tensor:
        parameter = self._parameters[norm.gain.name]
        gain = self._vector(
            norm.gain.name, parameter.detach().float() if parameter.dtype != torch.float64 else parameter
        )
        return 1 + gain if norm.adds_one else gain

    def _vector(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self._parameters[name].detach().to(like).reshape(-1)


def _bounds_of_norms(heads: Heads, gains: tuple[torch.Tensor, torch.Tensor], scale: float) -> torch.Tensor:
    """As `specdiag.function.scores.bounds_of_norms`."""
    n, head_dim, _ = heads.q.shape
    q, k = (gain.abs().reshape(-1, head_dim) for gain in gains)
    length = (q.numel() * k.numel()) ** 0.5
    k = k.repeat_interleave(len(q) // len(k), dim=0)
    first = heads.n_rotated
    if heads.rope == "half":
        of_q, of_k = (side[:, :first].reshape(len(q), 2, -1).amax(dim=1) for side in (q, k))
    else:
        of_q, of_k = (side[:, :first].reshape(len(q), -1, 2).amax(dim=2) for side in (q, k))
    both = torch.cat([of_q * of_k, q[:, first:] * k[:, first:]], dim=1)
    return (scale * length * both.amax(dim=1)).expand(n)
