"""Choice of one of several models in a checkpoint, by the prefix of its tensors' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import UsageError
from specdiag.text.names import listed

_LISTED = 8


def choose_part(tensors: Sequence[StoredTensor], part: str, where: str) -> tuple[list[StoredTensor], str] | None:
    """Choose the tensors below a prefix, and take it off their names.

    Args:
        tensors: all tensors of a checkpoint.
        part: the prefix, without the dot that ends it.
        where: the checkpoint, for messages.

    Returns:
        The tensors, and a note; None where no name has the prefix.
    """
    prefix = f"{part.rstrip('.')}."
    chosen = [
        replace(tensor, name=tensor.name.removeprefix(prefix))
        for tensor in tensors
        if tensor.name.startswith(prefix) and tensor.name != prefix
    ]
    if not chosen:
        return None
    left = len(tensors) - len(chosen)
    return chosen, f"Took the {len(chosen)} tensors under '{part}' of {where} and left out {left} others."


def refuse_unknown_part(tensors: Sequence[StoredTensor], part: str, where: str) -> UsageError:
    """Make the error of a part that is not there.

    Args:
        tensors: all tensors of the checkpoint.
        part: what was asked for.
        where: the checkpoint, for messages.
    """
    counts = Counter(name for tensor in tensors if (name := tensor.name.partition(".")[0]) != tensor.name)
    there = [f"{brief(name)} ({count} tensors)" for name, count in counts.items()]
    contents = f"it has {listed(there, _LISTED)}" if there else "its names have no prefixes"
    return UsageError(f"{where} has no part={brief(part)}: {contents}")
