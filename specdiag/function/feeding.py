"""The norm whose output a part of a block reads, also where norms stand behind the residual sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from specdiag.architecture.wiring import UnknownWiring
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.function.norms import Norms
from specdiag.function.parts import Block
from specdiag.function.stored import StoredNorm


class Feeding:
    """The norms of the blocks that share a residual stream.

    Attributes:
        blocks: in the order of layers.
        width: of the stream; None where no matrix tells it.
    """

    def __init__(self, blocks: Sequence[Block], stored: Mapping[str, StoredTensor]) -> None:
        """Sort the blocks.

        Args:
            blocks: of one component, at least one.
            stored: every tensor of the checkpoint, by name.
        """
        self.blocks = sorted(blocks, key=lambda block: -1 if block.layer is None else block.layer)
        self.width = _width(self.blocks[0])
        self._stored = stored

    def norm(self, i: int, part: Literal["attn", "mlp"], named: StoredNorm | None) -> StoredNorm | None:
        """Find the norm in front of a part.

        Args:
            i: place of its block.
            part: attention or an MLP.
            named: the norm that the wiring names in front of it.

        Returns:
            None where it reads the raw stream, or what it reads is unknown.
        """
        block = self.blocks[i]
        wiring = block.wiring
        if wiring.stream != "post":
            return named
        if part == "mlp":
            return self._find(block.path, wiring.post_attn)
        if i > 0 and self.blocks[i - 1].layer == (block.layer or 0) - 1:
            return self._find(self.blocks[i - 1].path, wiring.post_mlp)
        paths = {name.rpartition(".")[0] for name in self._stored}
        found = [path for path in paths if f".{path}".endswith(f".{wiring.post_embed}")]
        if block.layer != 0 or len(found) != 1:
            return None
        return self._find(*found[0].rsplit(".", 1))

    def _find(self, path: str, name: str | None) -> StoredNorm | None:
        try:
            return Norms(path, self.blocks[0].wiring, self._stored, self.width).find(name)
        except UnknownWiring:  # what it reads is then as unknown as a raw stream
            return None


def _width(block: Block) -> int | None:
    readers = [part.q for part in (block.attention, block.cross) if part is not None]
    readers += [mlp.up for mlp in block.mlps]
    return readers[0].shape[1] if readers else None
