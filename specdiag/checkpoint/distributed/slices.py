"""Safetensors files of slices, one set a process, as the Hugging Face writer of torch.distributed.checkpoint saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from specdiag.checkpoint.distributed.folders import neighbours
from specdiag.checkpoint.distributed.joining import Piece, join_pieces
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.text.counts import counted


class _Slice(NamedTuple):
    offsets: tuple[int, ...]
    tensor: StoredTensor


def join_slices(
    listings: Sequence[Listing], files: Sequence[str], where: str, has: Callable[[str], bool]
) -> tuple[list[StoredTensor], list[str]]:
    """Join the tensors of several files, where the files say that they hold slices of larger ones.

    Args:
        listings: the content of each file.
        files: their names.
        where: the checkpoint, for messages.
        has: tells whether there is a file of that name.

    Returns:
        All tensors, in stored order, and a note where the files tell of slices.

    Raises:
        SourceError: slices are missing, overlap or have different types, or the files of other processes were left out.
    """
    tensors = [tensor for listing in listings for tensor in listing.tensors]
    if all(listing.offsets is None for listing in listings):
        return tensors, []
    _refuse_alone(files, has)
    slices: dict[str, list[_Slice]] = {}
    for listing in listings:
        for tensor in listing.tensors:
            offsets = (listing.offsets or {}).get(tensor.name, (0,) * len(tensor.shape))
            if len(offsets) != len(tensor.shape):
                raise SourceError(
                    f"'{tensor.file}' is damaged: it says that '{brief(tensor.name)}' begins at {offsets}"
                )
            slices.setdefault(tensor.name, []).append(_Slice(offsets, tensor))
    joined = [_joined(name, group, where) for name, group in slices.items()]
    n_joined = sum(len(group) > 1 for group in slices.values())
    what = (
        f"Joined {n_joined} of {counted(len(joined), 'tensor')} from the slices of several processes in {where}. "
        "Their shapes are those that the slices cover: that the last process's file is missing could not be seen."
        if n_joined
        else f"Read {counted(len(joined), 'tensor')} as whole from what may be one process's slices in {where}: "
        "that the files of other processes are missing could not be seen; check the shapes."
    )
    return joined, [what]


def _refuse_alone(files: Sequence[str], has: Callable[[str], bool]) -> None:
    """Refuse one file where those of the processes next to its own exist."""
    other = next(filter(has, neighbours(files[0])), None) if len(files) == 1 else None
    if other is not None:
        raise SourceError(
            f"{files[0]} holds the slices of one process, no whole matrices, and {other} those of another: "
            "give their folder, to read them together"
        )


def _joined(name: str, slices: Sequence[_Slice], where: str) -> StoredTensor:
    first = slices[0].tensor
    if len(slices) == 1 and not any(slices[0].offsets):
        return first
    if len({(len(offsets), tensor.dtype) for offsets, tensor in slices}) > 1:
        raise SourceError(f"{where} holds slices of different types of '{brief(name)}': they are not of one checkpoint")
    shape = tuple(
        max(offsets[axis] + tensor.shape[axis] for offsets, tensor in slices) for axis in range(len(first.shape))
    )
    pieces = [Piece(offsets, tensor.shape, tensor.read) for offsets, tensor in slices]
    nbytes = sum(tensor.nbytes for _, tensor in slices)
    return join_pieces(name, shape, first.dtype, pieces, nbytes=nbytes, label=where)
