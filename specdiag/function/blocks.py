"""The blocks of a checkpoint with what stands around their matrices, as far as config, names and shapes tell it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from specdiag.architecture.names import Neighbours, parse
from specdiag.architecture.role_map import load_wirings
from specdiag.architecture.wiring import UnknownWiring, find_wiring
from specdiag.checkpoint.meta_params import stated_sizes
from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.function.finder import READERS, WRITERS, Finder
from specdiag.function.parts import Block


@dataclass(slots=True)
class _LeftOut:
    """Parts of blocks that are left out, by reason."""

    reasons: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, path: str, what: str, reason: str) -> None:
        self.reasons[what, reason].append(path)

    def sentences(self) -> list[str]:
        return [
            f"{what} of {_and_more(paths)} is left out of the function: {reason}."
            for (what, reason), paths in self.reasons.items()
        ]


def _and_more(paths: Sequence[str]) -> str:
    n_more = len(paths) - 1
    return f"{paths[0]} and {n_more} more block{'s' if n_more > 1 else ''}" if n_more else paths[0]


def find_blocks(checkpoint: Checkpoint) -> tuple[list[Block], list[str]]:
    """Find the blocks of a checkpoint whose wiring is known.

    Args:
        checkpoint: an open one; no values are read.

    Returns:
        The blocks in stored order, and sentences on what is left out.
    """
    stored = {tensor.name: tensor for tensor in checkpoint.stored or ()}
    neighbours = Neighbours(stored)
    grouped: dict[str, list[WeightMatrix]] = defaultdict(list)
    for matrix in checkpoint.matrices:
        role = matrix.module.role
        is_known = matrix.rank is None and matrix.n_slices == 1 and role in (*READERS, *WRITERS)
        if is_known and (path := parse(matrix.name, neighbours).block):
            grouped[path].append(matrix)
    role_map = checkpoint.opening.role_path
    own = () if role_map is None else load_wirings(role_map)
    config = checkpoint.config or (stated_sizes(checkpoint) if grouped else {})
    blocks: list[Block] = []
    unknown: dict[str, None] = {}
    left_out = _LeftOut()
    for path, matrices in grouped.items():
        component = matrices[0].module.component
        paths = {m.name.removeprefix(f"{path}.").rpartition(".")[0] for m in matrices}
        try:
            wiring = find_wiring(config, component, own=own, modules=paths)
            finder = Finder(path, matrices, config, wiring, stored)
        except UnknownWiring as error:
            unknown[str(error)] = None
            continue
        blocks.append(finder.block(partial(left_out.add, path)))
    if not grouped:
        unknown["no block with attention or an MLP was found"] = None
    notes = [f"{reason[0].upper()}{reason[1:]}: QK, OV, DU and gauge_shift are left out." for reason in unknown]
    return blocks, notes + left_out.sentences()
