"""Tensors in pieces in several torch files. A tensor is joined when it is read, so that no two are in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import torch
from msgspec.structs import replace

from specdiag.checkpoint.file_map import FileMap
from specdiag.checkpoint.formats import TORCH, recognise
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.nested import Walk
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_archive import Opened, open_torch
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

LARGEST = 1 << 48
"""Most values of one tensor that a layout may promise."""


@dataclass(frozen=True, slots=True)
class TorchPart:
    """A torch file that holds a piece of a model.

    Attributes:
        label: the file, for messages.
        content: its dictionary.
        mapped: the memory that it is mapped to.
    """

    label: str
    content: Mapping[object, object]
    mapped: FileMap | None

    def stored(self, name: str, tensor: torch.Tensor) -> StoredTensor:
        """Make a stored tensor of a tensor of this file.

        Args:
            name: its name in the checkpoint.
            tensor: of the content, or a view of one.
        """
        return list_tensors({name: tensor}, self.label, self.mapped)[0]

    def tensors(self, value: object) -> dict[str, StoredTensor]:
        """List the tensors below a value of the content, under the names of their keys joined with dots.

        Args:
            value: a dictionary of the content.

        Raises:
            SourceError: two tensors get one name, or dictionaries are nested too deeply.
        """
        found = list_tensors(Walk(self.label).enter(value).tensors, self.label, self.mapped)
        return {tensor.name: tensor for tensor in found}


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one model in pieces.

    Attributes:
        where: the folder, for messages.
        names: the files of the layout, relative to the folder.
        path: finds a file on this machine.
        beside: files that hold no weights and say how many pieces there are.
    """

    where: str
    names: tuple[str, ...]
    path: Callable[[str], Path]
    beside: tuple[str, ...] = ()

    def label(self, name: str) -> str:
        """Give a file's name for messages."""
        return f"{self.where}/{name}"

    def open(self, name: str) -> TorchPart:
        """Open a torch file of the folder.

        Args:
            name: the file, relative to the folder.

        Raises:
            SourceError: it is damaged, or holds no dictionary.
        """
        opened = open_recognised(self.path(name), self.label(name))
        if not isinstance(opened.content, Mapping):
            kind = type(opened.content).__name__
            raise SourceError(f"'{self.label(name)}' holds a {kind}, and a dictionary was expected: fetch it again")
        return TorchPart(self.label(name), cast("Mapping[object, object]", opened.content), opened.mapped)


def open_recognised(path: Path, label: str) -> Opened:
    """Open a torch file that may be anything in truth, such as a pointer of Git LFS.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: it is damaged, or something else, which is named.
    """
    format = recognise(path, label)
    if format is not TORCH:
        raise SourceError(f"'{label}' is a file of {format.name}, and one of torch.save was expected: fetch it again")
    return open_torch(path, label)


def concatenate(name: str, pieces: Sequence[StoredTensor], axis: int) -> StoredTensor:
    """Join pieces along an axis.

    Args:
        name: of the joined tensor.
        pieces: at least one, in order.
        axis: of every piece.

    Returns:
        The joined tensor, not read.

    Raises:
        SourceError: their types or their other sizes differ.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return replace(first, name=name)
    kinds = {(piece.dtype, piece.shape[:axis], piece.shape[axis + 1 :]) for piece in pieces}
    if len(kinds) > 1 or axis >= len(first.shape):
        shapes = ", ".join(f"{piece.dtype} {piece.shape}" for piece in pieces[:4])
        raise SourceError(
            f"the pieces of '{brief(name)}' do not fit together ({shapes}), in '{first.file}' and others: "
            "they are not of one checkpoint"
        )
    total = sum(piece.shape[axis] for piece in pieces)
    return replace(
        first,
        name=name,
        shape=(*first.shape[:axis], total, *first.shape[axis + 1 :]),
        nbytes=sum(piece.nbytes for piece in pieces),
        read=partial(_read_along, tuple(pieces), axis),
        storage=None,
        reason=next((piece.reason for piece in pieces if piece.reason is not None), None),
    )


def _read_along(pieces: Sequence[StoredTensor], axis: int, index: int | None = None) -> RawArray:
    if index is not None:
        if axis:
            return fill_in_turn([(lambda p=piece: p.read(index)) for piece in pieces], axis - 1)
        ends = list(accumulate(piece.shape[0] for piece in pieces))
        place = next(i for i, end in enumerate(ends) if index < end)
        return pieces[place].read(index - (ends[place] - pieces[place].shape[0]))
    return fill_in_turn([(lambda p=piece: p.read(None)) for piece in pieces], axis, [p.shape[axis] for p in pieces])


def fill_in_turn(readers: Sequence[Callable[[], RawArray]], axis: int, sizes: Sequence[int] | None = None) -> RawArray:
    """Read one piece after another into its part of the result, so that a single piece is held beside it.

    Args:
        readers: of the pieces, in order.
        axis: along which they lie.
        sizes: of the pieces along it; that of the first where there are none.
    """
    first = readers[0]()
    sizes = sizes or [first.shape[axis]] * len(readers)
    out: RawArray = np.empty((*first.shape[:axis], sum(sizes), *first.shape[axis + 1 :]), first.dtype)
    begin = 0
    for place, (reader, size) in enumerate(zip(readers, sizes, strict=True)):
        out[(slice(None),) * axis + (slice(begin, begin + size),)] = reader() if place else first
        begin += size
    return out
