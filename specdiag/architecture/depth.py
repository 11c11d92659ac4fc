"""Which block and which piece of the model a tensor lies in, decided over all names together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from specdiag.architecture.names import Name

_TRUNK = "text"


def layers(names: Mapping[str, Name]) -> dict[str, int | None]:
    """Find the block index of every name.

    Where a stack nests its blocks in stages (layers.2.blocks.5), blocks are numbered through all stages.

    Args:
        names: all names of a checkpoint, taken apart.

    Returns:
        The index of each; None outside of all blocks.
    """
    stacks: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name in names.values():
        if name.context in ("attention", "mlp"):
            stacks[name.stack].add(name.indices)
    numbered = {stack: _through(blocks) for stack, blocks in stacks.items()}
    return {key: _layer(name, numbered.get(name.stack)) for key, name in names.items()}


def components(names: Mapping[str, Name]) -> dict[str, str | None]:
    """Find the piece of the model that every name belongs to.

    A piece with both an encoder and a decoder is divided: `encoder`, or `text.encoder` where there are other pieces.

    Args:
        names: all names of a checkpoint, taken apart.

    Returns:
        The piece of each; None throughout in a model of one piece.
    """
    pieces = {name.component for name in names.values() if name.indices}
    sides: dict[str | None, set[str]] = defaultdict(set)
    for name in names.values():
        if name.indices and name.side is not None:
            sides[name.component].add(name.side)
    several = len(pieces) > 1

    def label(name: Name) -> str | None:
        piece = name.component if several else None
        if several and piece is None and name.indices and not sides[None]:
            piece = _TRUNK
        side = name.side if len(sides[name.component]) > 1 else None
        return ".".join(word for word in (piece, side) if word) or None

    return {key: label(name) for key, name in names.items()}


def _through(blocks: set[tuple[int, ...]]) -> dict[tuple[int, ...], int] | None:
    """Number nested blocks through all stages; None for a plain stack."""
    if not blocks or min(len(block) for block in blocks) < 2:
        return None
    return {block: i for i, block in enumerate(sorted({block[:2] for block in blocks}))}


def _layer(name: Name, numbers: dict[tuple[int, ...], int] | None) -> int | None:
    if numbers is None:
        return name.indices[0] if name.indices else None
    return numbers.get(name.indices[:2])
