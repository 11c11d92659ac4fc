"""Vectors that lie end to end in torch files, as DeepSpeed flattens parameters, and tensors cut out of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from msgspec.structs import replace

from specdiag.checkpoint.layouts.pieces import TorchPart, fill_in_turn
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray


@dataclass(frozen=True, slots=True)
class Strip:
    """Vectors that lie end to end, in files.

    Attributes:
        vectors: with the files that hold them; at least one.
        ends: number of values up to the end of each.
    """

    vectors: tuple[tuple[TorchPart, torch.Tensor], ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, vectors: Iterable[tuple[TorchPart, torch.Tensor]]) -> Strip:
        """Lay vectors end to end."""
        there = tuple(vectors)
        return cls(there, tuple(accumulate(vector.numel() for _, vector in there)))

    def __len__(self) -> int:
        return self.ends[-1]

    def cut(self, begin: int, end: int) -> tuple[tuple[TorchPart, torch.Tensor], ...]:
        """Cut out the values from one place to another.

        Args:
            begin: place of the first value.
            end: place behind the last.

        Returns:
            Views of the vectors; none is empty, but the only one of an empty range.
        """
        found: list[tuple[TorchPart, torch.Tensor]] = []
        for place in range(bisect_right(self.ends, begin), len(self.vectors)):
            file, vector = self.vectors[place]
            at = self.ends[place] - vector.numel()
            if at >= end:
                break
            if part := vector[max(begin - at, 0) : end - at].numel():
                first = max(begin - at, 0)
                found.append((file, vector[first : first + part]))
        file, vector = self.vectors[0]
        return tuple(found) or ((file, vector[:0]),)


def unflatten(name: str, shape: Sequence[int], vectors: Sequence[tuple[TorchPart, torch.Tensor]]) -> StoredTensor:
    """Make a tensor of values that lie one after another in vectors.

    Args:
        name: of the tensor.
        shape: its shape.
        vectors: views with as many values in all as the shape has, and the files that hold them.

    Returns:
        The tensor, not read.

    Raises:
        SourceError: the types of the vectors differ.
    """
    file, vector = vectors[0]
    odd = next(((f, v) for f, v in vectors if v.dtype != vector.dtype), None)
    if odd is not None:
        raise SourceError(
            f"the pieces of '{brief(name)}' are of {vector.dtype} in '{file.label}' and of {odd[1].dtype} in "
            f"'{odd[0].label}': they are not of one checkpoint"
        )
    return replace(
        file.stored(name, vector),
        shape=tuple(shape),
        nbytes=sum(vector.numel() * vector.element_size() for _, vector in vectors),
        read=partial(_read_flat, name, tuple(shape), Strip.of(vectors)),
        storage=("unflattened", file.label, name),
    )


def _read_flat(name: str, shape: tuple[int, ...], strip: Strip, index: int | None = None) -> RawArray:
    begin, end = 0, len(strip)
    if index is not None:
        shape = shape[1:]
        begin, end = index * math.prod(shape), (index + 1) * math.prod(shape)
    pieces = strip.cut(begin, end)
    readers = [(lambda f=file, v=vector: f.stored(name, v).read(None)) for file, vector in pieces]
    return fill_in_turn(readers, 0, [vector.numel() for _, vector in pieces]).reshape(shape)
