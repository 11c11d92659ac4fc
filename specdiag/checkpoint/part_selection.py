"""Choice of one of several models in a checkpoint, by the prefix of its tensors' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import UsageError
from specdiag.text.counts import counted
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
    return (
        chosen,
        f"Took the {counted(len(chosen), 'tensor')} under '{part}' of {where} and left out {counted(left, 'other')}.",
    )


def refuse_unknown_part(
    tensors: Sequence[StoredTensor], part: str, where: str, models: Mapping[str, int]
) -> UsageError:
    """Make the error of a part that is not there.

    Args:
        tensors: all tensors of the checkpoint.
        part: what was asked for.
        where: the checkpoint, for messages.
        models: numbers of tensors of the models that it keeps in dictionaries of their own, by their keys.
    """
    there = [f"{brief(name)} ({counted(n, 'tensor')})" for name, n in (models or _large(tensors)).items()]
    contents = f"it has {listed(there, _LISTED)}" if there else "it holds one model, so leave out part="
    return UsageError(f"{where} has no part={brief(part)}: {contents}")


def _large(tensors: Sequence[StoredTensor]) -> dict[str, int]:
    """Count the tensors under each first prefix that has several matrices, where two or more have."""
    prefixes = [(name, tensor) for tensor in tensors if (name := tensor.name.partition(".")[0]) != tensor.name]
    matrices = Counter(name for name, tensor in prefixes if len(tensor.shape) > 1)
    counts = Counter(name for name, _ in prefixes)
    large = {name: n for name, n in counts.items() if matrices[name] > 1}
    return large if len(large) > 1 else {}
