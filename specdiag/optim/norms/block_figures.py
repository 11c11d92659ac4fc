"""Figures of a live model's blocks, where its wiring is known: scores of heads, rank of QK, channels of the stream."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
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
from specdiag.function.stored import StoredNorm
from specdiag.live.parameters import live_config, live_parameters
from specdiag.optim.norms.block_reader import BlockReader, LiveAttention
from specdiag.system.gathering import is_sharded
from specdiag.trajectories.function_alerts import CHANNEL_INDEX, CHANNEL_SIZE
from specdiag.trajectories.metric_log import LogEntry, entry


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
        self._attentions: list[LiveAttention] = []
        self._mlps: dict[str | None, list[tuple[Block, Mlp]]] = defaultdict(list)
        self.notes: tuple[str, ...] = ()
        config = live_config(model)
        try:
            tensors = {n: _outline(p.detach()) for n, p in self._parameters.items()}
            checkpoint = from_state_dict(tensors, config=config or None)
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
                self._attentions.append(LiveAttention(path, block, attention, norm, scale))
        for reason, paths in reasons.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            notes.append(f"Scores of {paths[0]}{more} are not bounded: {reason}.")
        self.notes = tuple(notes)

    def together(self) -> list[set[nn.Parameter]]:
        """List the matrices that are needed at one place: of each attention, and of each MLP."""
        names = [_of_attention(each.attention) for each in self._attentions]
        names += [_of_mlp(mlp) for mlps in self._mlps.values() for _, mlp in mlps]
        return [{self._parameters[name] for name in own} for own in names]

    @torch.no_grad()
    def of_heads(self, step: int, present: Mapping[str, torch.Tensor]) -> list[list[LogEntry]]:
        """Bound the scores and measure QK of each attention.

        Args:
            step: optimizer steps done.
            present: whole Parameters by name, vectors among them.

        Returns:
            The entries of each attention; none where its matrices are not present.
        """
        found: list[tuple[int, str, torch.Tensor]] = []
        for i, each in enumerate(self._attentions):
            if _of_attention(each.attention) <= present.keys():
                found += [(i, metric, values) for metric, values in BlockReader(present).figures(each)]
        numbers = torch.cat([values.to(found[0][2]) for *_, values in found]).tolist() if found else []
        rows: list[list[LogEntry]] = [[] for _ in self._attentions]
        place = 0
        for i, metric, values in found:
            for head in range(len(values)):
                rows[i].append(entry(step, f"{self._attentions[i].path}[head={head}.qk]", metric, numbers[place]))
                place += 1
        return rows

    @torch.no_grad()
    def rows(self, present: Mapping[str, torch.Tensor]) -> list[torch.Tensor | None]:
        """Compute the square norms of the rows of each MLP's down projection, neurons in balance.

        Args:
            present: whole Parameters by name, vectors among them.

        Returns:
            Shape [d] for each MLP, as `specdiag.function.mlp_alarms`; None where its matrices are not present.
        """
        reader = BlockReader(present)
        return [
            reader.row_squares(block, mlp) if _of_mlp(mlp) <= present.keys() else None
            for mlps in self._mlps.values()
            for block, mlp in mlps
        ]

    def of_channels(self, step: int, rows: Sequence[torch.Tensor | None]) -> Iterator[LogEntry]:
        """Yield size and number of the largest channel of each tower.

        Args:
            step: optimizer steps done.
            rows: of all MLPs, from `rows`.
        """
        left = iter(rows)
        for component, mlps in self._mlps.items():
            total: torch.Tensor | None = None
            for own in islice(left, len(mlps)):
                total = own if total is None or own is None else total + own.to(total)
            if total is None:
                continue
            sizes = total.sqrt()
            top, middle = sizes.max(), sizes.quantile(0.5)
            size, index = torch.stack([top / middle, sizes.argmax().to(top)]).tolist()
            yield entry(step, component or "", CHANNEL_SIZE, size)
            yield entry(step, component or "", CHANNEL_INDEX, index)


def _of_attention(attention: Attention) -> set[str]:
    return {attention.q.matrix.name, attention.k.matrix.name}


def _of_mlp(mlp: Mlp) -> set[str]:
    return {mlp.up.matrix.name, mlp.down.matrix.name}


def _outline(tensor: torch.Tensor) -> torch.Tensor:
    """Give zeros of a sharded tensor's shape and type, whose memory is not touched; a whole one as it is."""
    if not is_sharded(tensor):
        return tensor
    return (
        torch.from_numpy(np.zeros(tensor.numel() * tensor.element_size(), np.uint8))
        .view(tensor.dtype)
        .reshape(tensor.shape)
    )


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
