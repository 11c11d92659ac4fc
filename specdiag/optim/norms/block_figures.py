"""Figures of a live model's blocks, where its wiring is known: scores of heads, rank of QK, channels of the stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from specdiag.architecture import config as settings
from specdiag.architecture.wiring import UnknownWiring
from specdiag.checkpoint.memory import from_state_dict
from specdiag.errors import SourceError
from specdiag.function.blocks import find_blocks
from specdiag.function.feeding import Feeding
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.score_scale import score_scale
from specdiag.function.stored import StoredNorm, Weight
from specdiag.live.parameters import live_config, live_parameters
from specdiag.optim.norms.head_figures import Heads, qk_stable_ranks, score_bounds
from specdiag.trajectories.function_alerts import CHANNEL_INDEX, CHANNEL_SIZE, QK_STABLE_RANK, SCORE_BOUND
from specdiag.trajectories.metric_log import LogEntry, entry


@dataclass(frozen=True, slots=True)
class _LiveAttention:
    path: str
    block: Block
    attention: Attention
    feeding: StoredNorm | None
    scale: float | None


class BlockFigures:
    """The blocks of a live model whose figures are logged.

    Attributes:
        notes: sentences on what is left out, each with its reason.
    """

    def __init__(self, model: nn.Module, keys: Collection[str]) -> None:
        """Find the blocks. No values are read.

        Args:
            model: wrappers (DDP, torch.compile) are looked through.
            keys: of the matrices that are watched; heads and channels of others are left out.
        """
        self._parameters = live_parameters(model)
        self._attentions: list[_LiveAttention] = []
        self._mlps: dict[str | None, list[tuple[Block, Mlp]]] = defaultdict(list)
        self.notes: tuple[str, ...] = ()
        config = live_config(model)
        try:
            checkpoint = from_state_dict({n: p.detach() for n, p in self._parameters.items()}, config=config or None)
        except SourceError as error:
            self.notes = (f"Scores, QK and channels are not watched: {error}.",)
            return
        blocks, notes = find_blocks(checkpoint)
        notes = [
            n.replace("QK, OV, DU and gauge_shift are left out", "scores, QK and channels are not watched")
            for n in notes
        ]
        stored = {tensor.name: tensor for tensor in checkpoint.stored or ()}
        by_component: dict[str | None, list[Block]] = defaultdict(list)
        for block in blocks:
            by_component[block.component].append(block)
        reasons: dict[str, list[str]] = defaultdict(list)
        for component, own in by_component.items():
            chain = settings.sections(config, (component or "text").partition(".")[0])
            feeding = Feeding(own, stored)
            for i, block in enumerate(feeding.blocks):
                self._mlps[component] += [
                    (block, mlp) for mlp in block.mlps if {mlp.up.matrix.key, mlp.down.matrix.key} <= set(keys)
                ]
                attention = block.attention
                if attention is None or not {attention.q.matrix.key, attention.k.matrix.key} <= set(keys):
                    continue
                scale, norm = None, feeding.norm(i, "attn", attention.norm)
                try:
                    scale = _scale(attention, norm, score_scale(chain, attention.head_dim, block.layer))
                except UnknownWiring as error:
                    reasons[str(error)].append(block.path)
                path = attention.q.matrix.name.rpartition(".")[0].rpartition(".")[0] or block.path
                self._attentions.append(_LiveAttention(path, block, attention, norm, scale))
        for reason, paths in reasons.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            notes.append(f"Scores of {paths[0]}{more} are not bounded: {reason}.")
        self.notes = tuple(notes)

    @torch.no_grad()
    def entries(self, step: int) -> list[LogEntry]:
        """Measure the weights as they are now.

        Args:
            step: optimizer steps done.
        """
        return [*self._of_heads(step), *self._of_channels(step)]

    def _of_heads(self, step: int) -> Iterator[LogEntry]:
        found: list[tuple[str, str, torch.Tensor]] = []
        for each in self._attentions:
            attention = each.attention
            heads = self._heads(each, attention.norm)
            gains = None
            if attention.head_norms is not None:
                q, k = (self._gain(norm) for norm in attention.head_norms)
                gains = q, k
            found.append((QK_STABLE_RANK, each.path, qk_stable_ranks(heads, gains)))
            if each.scale is None:
                continue
            if gains is not None:
                bounds = _bounds_of_norms(heads, gains, each.scale)
            else:
                same = each.feeding is attention.norm
                bounds = score_bounds(heads if same else self._heads(each, each.feeding), each.scale)
            found.append((SCORE_BOUND, each.path, bounds))
        numbers = torch.cat([values.to(found[0][2]) for *_, values in found]).tolist() if found else []
        place = 0
        for metric, path, values in found:
            for head in range(len(values)):
                yield entry(step, f"{path}[head={head}.qk]", metric, numbers[place])
                place += 1

    def _of_channels(self, step: int) -> Iterator[LogEntry]:
        for component, mlps in self._mlps.items():
            rows: torch.Tensor | None = None
            for block, mlp in mlps:
                own = self._row_squares(block, mlp)
                rows = own if rows is None else rows + own.to(rows)
            if rows is None:
                continue
            sizes = rows.sqrt()
            top, middle = sizes.max(), sizes.quantile(0.5)
            size, index = torch.stack([top / middle, sizes.argmax().to(top)]).tolist()
            yield entry(step, component or "", CHANNEL_SIZE, size)
            yield entry(step, component or "", CHANNEL_INDEX, index)

    def _row_squares(self, block: Block, mlp: Mlp) -> torch.Tensor:
        """Square norms of the rows of down, neurons in balance, shape [d]; as `specdiag.function.mlp_alarms`."""
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

    def _heads(self, each: _LiveAttention, norm: StoredNorm | None) -> Heads:
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


def _scale(attention: Attention, feeding: StoredNorm | None, scale: float) -> float:
    """Return the scale of scores that can be bounded.

    Raises:
        UnknownWiring: nothing bounds them.
    """
    if attention.k.shape[1] != attention.q.shape[1]:
        raise UnknownWiring("its keys read a stream of another width")
    if feeding is None and attention.head_norms is None:
        raise UnknownWiring("it reads the raw stream, whose size nothing bounds")
    return scale


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
