"""Tensors that lie in pieces, joined when they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from specdiag.checkpoint.distributed.cover import uncovered
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.plain_values import NUMPY_TYPES
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray


class Piece(NamedTuple):
    """A piece of a tensor.

    Attributes:
        offsets: of its first value in the tensor.
        sizes: its shape.
        read: reads its values; `read(i)` reads index `i` of its first axis alone.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    read: Callable[[int | None], RawArray]


def join_pieces(
    name: str, shape: tuple[int, ...], dtype: str, pieces: Sequence[Piece], *, nbytes: int, label: str
) -> StoredTensor:
    """Make one tensor of its pieces. Nothing is read yet; a read holds the tensor and one piece at a time.

    Args:
        name: its key in the checkpoint.
        shape: of the whole tensor.
        dtype: the safetensors spelling of its type.
        pieces: in any order.
        nbytes: stored bytes of all pieces.
        label: what holds them, for messages.

    Returns:
        The tensor.

    Raises:
        SourceError: the pieces do not cover it exactly.
    """
    problem = uncovered(shape, [piece[:2] for piece in pieces])
    if problem is not None:
        raise SourceError(
            f"{label} stores '{brief(name)}' of shape {list(shape)} in {len(pieces)} chunks, and its chunks {problem}: "
            "a file is missing, or of another save"
        )
    filled = tuple(piece for piece in pieces if 0 not in piece.sizes)
    return StoredTensor(
        name, shape, dtype, nbytes, label, partial(_read, shape, dtype, filled),
        reason=None if dtype in NUMPY_TYPES else f"chunks of type {dtype} are not joined",
    )  # fmt: skip


def _read(shape: tuple[int, ...], dtype: str, pieces: Sequence[Piece], index: int | None = None) -> RawArray:
    if len(pieces) == 1:
        return pieces[0].read(index)
    values = np.empty(shape if index is None else shape[1:], NUMPY_TYPES[dtype])
    for offsets, sizes, read in pieces:
        region = tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
        if index is None:
            values[region] = read(None)
        elif offsets[0] <= index < offsets[0] + sizes[0]:
            values[region[1:]] = read(index - offsets[0])
    return values
