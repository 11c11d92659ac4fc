"""Alarms from weights alone, a block at a time: removed directions, massive channels, bounds of outputs and of scores.

Memory: about four times the attention of a block, or one MLP or expert of it, in float64; G of at most 1 GiB, and up
to two sums of G for each doubling of 8 layers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from specdiag.architecture import config as settings
from specdiag.architecture.wiring import UnknownWiring
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.function.alarm_records import Alarms, Channel, OutputRange, ScoreBound, WindowRatio, WriterRatio
from specdiag.function.algebra import Algebra
from specdiag.function.arrays import Array
from specdiag.function.attention_alarms import Outputs, Setting, look_at_attention, reader_range
from specdiag.function.blocks import find_blocks
from specdiag.function.bounds import least_of_norm
from specdiag.function.directions import DirectionSearch
from specdiag.function.feeding import Feeding
from specdiag.function.folding import fold_reader
from specdiag.function.mlp_alarms import look_at_mlp
from specdiag.function.parts import Block
from specdiag.function.score_scale import Chain
from specdiag.function.stored import StoredNorm, Weight, finite

_CHANNELS = 5
"""Channels that are listed of a stream, those with the largest rows."""
_TYPES = {"float16": "F16", "half": "F16", "bfloat16": "BF16", "float32": "F32", "float": "F32"}


@dataclass(slots=True)
class _Found:
    ranges: list[OutputRange] = field(default_factory=list[OutputRange])
    scores: list[ScoreBound] = field(default_factory=list[ScoreBound])
    channels: list[Channel] = field(default_factory=list[Channel])
    writers: list[WriterRatio] = field(default_factory=list[WriterRatio])
    windows: list[WindowRatio] = field(default_factory=list[WindowRatio])
    vectors: dict[str, Array] = field(default_factory=dict[str, Array])
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def look_for_alarms(checkpoint: Checkpoint, device: str = "cpu") -> tuple[Alarms, Mapping[str, Array]]:
    """Measure what weights alone say of a model's outputs, where its wiring is known.

    Every block is read once, and what writes to the stream a second time where G of all of it exceeds 1 GiB.

    Args:
        checkpoint: an open one.
        device: on which products and decompositions are computed, in float64.

    Returns:
        The figures, and the lowest directions [d, k] by the key of a matrix or the name of a range of layers.

    Raises:
        SourceError: weights cannot be read.
    """
    blocks, notes = find_blocks(checkpoint)
    notes = [note.replace("QK, OV, DU and gauge_shift are left out", "its alarms are left out") for note in notes]
    by_component: dict[str | None, list[Block]] = defaultdict(list)
    for block in blocks:
        by_component[block.component].append(block)
    found, algebra = _Found(), Algebra(device)
    for of_stream in by_component.values():
        _Stream(of_stream, checkpoint, algebra).look(found)
    notes += [f"{', '.join(places[:3])}{' and others' if len(places) > 3 else ''}: {reason}."
              for reason, places in found.left_out.items()]  # fmt: skip
    alarms = Alarms(
        writers=tuple(found.writers),
        windows=tuple(found.windows),
        channels=tuple(found.channels),
        ranges=tuple(found.ranges),
        scores=tuple(found.scores),
        notes=tuple(notes),
    )
    return alarms, found.vectors


class _Stream:
    """The blocks that share a residual stream."""

    def __init__(self, blocks: list[Block], checkpoint: Checkpoint, algebra: Algebra) -> None:
        chain = settings.sections(checkpoint.config, (blocks[0].component or "text").partition(".")[0])
        stored = {tensor.name: tensor for tensor in checkpoint.stored or ()}
        self._feeding = Feeding(blocks, stored)
        self._blocks = self._feeding.blocks
        own = any(name.partition(".")[0] == "rope_freqs" for name in stored)
        self._setting = Setting(chain, _dtype(chain, checkpoint), algebra, has_own_frequencies=own)
        layers = [block.layer for block in blocks if block.layer is not None]
        is_centred = blocks[0].wiring.norm == "layer"
        self._search = DirectionSearch(blocks[0].component, layers, algebra, is_centred=is_centred)
        self._rows: list[Array] = []

    def look(self, found: _Found) -> None:
        """Look at all blocks, and add what is found."""
        for outputs in self._pass(found):
            for writer in outputs.writers:
                self._search.add(writer)
            if outputs.row_norms is not None:
                self._rows.append(outputs.row_norms)
            found.ranges += outputs.ranges
            found.scores += outputs.scores
        if not self._search.is_held:
            for outputs in self._pass(_Found()):
                for writer in outputs.writers:
                    self._search.compare(writer)
        writers, ranges, vectors = self._search.finish()
        found.writers += writers
        found.windows += ranges
        found.vectors |= vectors
        found.channels += self._channels()

    def _pass(self, found: _Found) -> Iterator[Outputs]:
        """Look at each part of each block, and note what is left out."""
        for i, block in enumerate(self._blocks):
            for name, look in self._parts(i, block):
                try:
                    outputs = _numbers(look)
                except UnknownWiring as error:
                    found.left_out[str(error)].append(f"{name} of {block.path}")
                    continue
                if outputs.note is not None:
                    found.left_out[outputs.note].append(f"{name} of {block.path}")
                yield outputs

    def _parts(self, i: int, block: Block) -> Iterator[tuple[str, Callable[[], Outputs]]]:
        attention, setting = block.attention, self._setting
        norms: dict[str, StoredNorm] = {}

        def feeding(part: Literal["attn", "mlp"], named: StoredNorm | None) -> StoredNorm | None:
            norm = self._feeding.norm(i, part, named)
            norms.update({} if norm is None else {norm.gain.name: norm})
            return norm

        if attention is not None:
            norms.update({} if attention.out is None else {attention.out.gain.name: attention.out})
            before = feeding("attn", attention.norm)
            yield "Attention", partial(look_at_attention, block, attention, before, before, setting)
        if (cross := block.cross) is not None:
            yield "Cross-attention", partial(look_at_attention, block, cross, cross.norm, cross.kv_norm, setting)
        for mlp in block.mlps:
            norms.update({} if mlp.out is None else {mlp.out.gain.name: mlp.out})
            yield "The MLP", partial(look_at_mlp, block, mlp, feeding("mlp", mlp.norm), setting)
        if block.router is not None:
            yield "The router", partial(look_at_router, block, *block.router, setting)
        yield "Norms", partial(look_at_norms, block, norms, setting)

    def _channels(self) -> list[Channel]:
        """List the coordinates with the largest rows over all down projections."""
        if not self._rows:
            return []
        rows = np.sqrt(np.sum(self._rows, axis=0))
        middle = float(np.median(rows))
        top = np.argsort(-rows, kind="stable")[:_CHANNELS]
        component = self._blocks[0].component
        return [Channel(component=component, channel=int(i), size=float(rows[i]) / middle) for i in top if middle > 0]


def _numbers(look: Callable[[], Outputs]) -> Outputs:
    """Look at a part whose products may exceed float64.

    Raises:
        UnknownWiring: they do, or nothing is known of it.
    """
    with np.errstate(all="ignore"):
        try:
            outputs = look()
        except np.linalg.LinAlgError as error:
            raise UnknownWiring(f"its products are too large or too small for float64 ({error})") from error
    if not np.isfinite([row.bound for row in (*outputs.ranges, *outputs.scores)]).all():
        raise UnknownWiring("its products are too large or too small for float64")
    return outputs


def look_at_router(block: Block, weight: Weight, norm: StoredNorm | None, setting: Setting) -> Outputs:
    """Bound the outputs of a router.

    Args:
        block: its block.
        weight: of the router.
        norm: in front of it; None where it reads the raw stream, whose size nothing bounds.
        setting: of the piece.
    """
    if norm is None:
        return Outputs([], [], [])
    device = setting.algebra.device
    return Outputs(
        [reader_range(weight, fold_reader(finite(weight, device), norm.finite(device)), block, setting, "router")],
        [],
        [],
    )


def look_at_norms(block: Block, norms: Mapping[str, StoredNorm], setting: Setting) -> Outputs:
    """Bound the outputs of norms.

    Args:
        block: their block.
        norms: by the names of their gains.
        setting: of the piece.
    """
    found = Outputs([], [], [])
    for name, stored in norms.items():
        norm = stored.finite()
        bias = 0.0 if norm.bias is None else np.abs(norm.bias)
        bounds = len(norm.gain) ** 0.5 * np.abs(norm.gain) + bias
        found.ranges.append(
            OutputRange(
                key=name,
                role="norm",
                component=block.component,
                layer=block.layer,
                dtype=setting.dtype,
                bound=float(bounds.max()),
                row=int(bounds.argmax()),
                least=least_of_norm(norm),
            )
        )
    return found


def _dtype(chain: Chain, checkpoint: Checkpoint) -> str | None:
    """Find the type in which outputs are computed: the config's, else that of most weights; None of quantised ones."""
    for part in chain:
        stated = part.get("dtype", part.get("torch_dtype"))
        if isinstance(stated, str):
            return _TYPES.get(stated.removeprefix("torch."))
    held = Counter(matrix.storage_dtype for matrix in checkpoint.matrices)
    usual = held.most_common(1)[0][0] if held else None
    is_gguf = any(name.endswith(".gguf") for name in checkpoint.source.files)
    return usual if usual in _TYPES.values() and not is_gguf else None
