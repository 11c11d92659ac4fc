"""Joining the slices that tensor parallelism cuts of each matrix, along the axis that its name tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from specdiag.checkpoint.layouts.pieces import concatenate
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

Axis = Callable[[str], int | None]
"""Tells along which axis a tensor of this name was cut; None where each process holds a copy or it is not known."""
Tensors = dict[str, StoredTensor]


def join_slices(ranks: Sequence[Mapping[str, StoredTensor]], axis: Axis, where: str) -> Tensors:
    """Join the tensors of several processes.

    Args:
        ranks: the tensors of each process by name, in the order of the processes.
        axis: tells how a tensor was cut.
        where: the checkpoint, for messages.

    Returns:
        The joined tensors, not read; of copies the first.

    Raises:
        SourceError: the processes hold different names, pieces do not fit together, or it is not known how a tensor
            was cut.
    """
    require_same_names(ranks, where)
    return {name: join([tensors[name] for tensors in ranks], name, axis(name), where) for name in ranks[0]}


def require_same_names(ranks: Sequence[Mapping[str, StoredTensor]], where: str) -> None:
    """Refuse parts that hold different tensors.

    Args:
        ranks: the tensors of each process by name.
        where: the checkpoint, for messages.

    Raises:
        SourceError: a tensor is not in all of them.
    """
    for number, tensors in enumerate(ranks, start=1):
        odd = min(ranks[0].keys() ^ tensors.keys(), default=None)
        if odd is not None:
            raise SourceError(
                f"{where} holds '{brief(odd)}' in only one of its parts 1 and {number}: they are not of one checkpoint"
            )


def join(pieces: Sequence[StoredTensor], name: str, axis: int | None, where: str) -> StoredTensor:
    """Join the pieces of one tensor.

    Args:
        pieces: of each process, in order.
        name: of the tensor.
        axis: along which it was cut; None where all have to be equal copies.
        where: the checkpoint, for messages.

    Raises:
        SourceError: they do not fit together, or are no copies although nothing says how they were cut.
    """
    if axis is not None or len(pieces) == 1:
        return concatenate(name, pieces, axis or 0)
    first = pieces[0]
    values = None if any(piece.shape != first.shape for piece in pieces) else first.read(None)
    if values is None or any(not np.array_equal(values, piece.read(None)) for piece in pieces[1:]):
        raise SourceError(
            f"{where} holds '{brief(name)}' in {len(pieces)} parts that differ, and nothing says along which axis it "
            "was cut: merge the parts with the program that wrote them"
        )
    return first
