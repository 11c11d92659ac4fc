"""The values of one chunk: a whole stream of torch.save within a file, or an entry of the safetensors there."""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from specdiag.checkpoint.checksums import Checksums
from specdiag.checkpoint.distributed.sharding_info import saved_offsets
from specdiag.checkpoint.distributed.stream import locate_tensor
from specdiag.checkpoint.inert_unpickler import CrowdedError
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.plain_values import NUMPY_TYPES, read_bytes, read_range
from specdiag.checkpoint.safetensors_header import FIRST_READ, Header, read_header
from specdiag.checkpoint.torch_tensors import spelled_type
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_PROBE = 9
DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError,
    TypeError, AttributeError, AssertionError, RuntimeError, OverflowError, NotImplementedError, MemoryError,
    CrowdedError,
)  # fmt: skip
"""Errors of opening what is damaged."""


class _Place(NamedTuple):
    """Where values lie in a file.

    Attributes:
        begin: offset of the first byte of their storage.
        n_bytes: of the storage.
        first: the first value, counted in values.
        sizes: shape.
        steps: strides, counted in values.
        dtype: safetensors' spelling of the type.
        order: byte order.
        checksums: of the storage.
    """

    begin: int
    n_bytes: int
    first: int
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    dtype: str
    order: Literal["<", ">"]
    checksums: Checksums


@dataclass(slots=True)
class ChunkValues:
    """The values of a chunk in a file. They are located when they are first read.

    Attributes:
        path: the file.
        label: its name in messages.
        begin: first byte of what was stored.
        length: bytes that were stored.
        name: of the tensor, as it was saved.
        offsets: of the chunk in the tensor.
        sizes: shape of the chunk.
        dtype: safetensors' spelling of the type.
    """

    path: Path
    label: str
    begin: int
    length: int
    name: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    _place: _Place | None = field(default=None, repr=False)

    def read(self, index: int | None = None) -> RawArray:
        """Read the values.

        Args:
            index: of the first axis, to read that row alone; None for all.

        Returns:
            The values, in memory of their own.

        Raises:
            SourceError: the file is gone, too short or damaged, or holds something else there.
        """
        if self._place is None:
            self._place = self._located()
        place = self._place
        kind = NUMPY_TYPES[self.dtype].newbyteorder(place.order)
        first, sizes, steps = place.first, place.sizes, place.steps
        if index is not None:
            first, sizes, steps = first + index * steps[0], sizes[1:], steps[1:]
        reach = 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        stored = np.empty(reach * kind.itemsize, np.uint8)
        offset = place.begin + first * kind.itemsize
        read_range(self.path, self.label, offset, stored)
        damaged = place.checksums.damaged_member(offset, stored)
        if damaged is not None:
            raise self._refused(f"its bytes do not fit the checksum of {damaged!r:.60}: it is damaged, fetch it again")
        values = as_strided(stored.view(kind), sizes, [step * kind.itemsize for step in steps])
        return np.array(values, kind.newbyteorder("="), order="C")

    def _located(self) -> _Place:
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.begin)
                head = file.read(_PROBE)
                if head.startswith(b"PK\x03\x04"):
                    place = self._in_stream(file)
                elif head[8:] == b"{":
                    place = self._in_safetensors(os.fstat(file.fileno()))
                else:
                    raise self._refused("no file of torch.save lies there, and no safetensors: fetch it again")
        except DAMAGED as error:
            reason = str(error).partition("\n")[0][:200]
            raise self._refused(f"it is not readable ({reason}): fetch it again") from error
        self._check(place)
        return place

    def _check(self, place: _Place) -> None:
        if place.sizes != self.sizes:
            raise self._refused(f"a tensor of shape {_shown(place.sizes)} lies there: fetch it again")
        if place.dtype != self.dtype:
            raise self._refused(f"values of type {place.dtype} lie there: fetch it again")
        reach = place.first + 1 + sum((size - 1) * step for size, step in zip(place.sizes, place.steps, strict=True))
        if reach * NUMPY_TYPES[self.dtype].itemsize > place.n_bytes:
            raise self._refused(f"only {place.n_bytes} bytes of values lie there: fetch it again")

    def _refused(self, problem: str) -> SourceError:
        chunk = f"{self.dtype} of shape {_shown(self.sizes)} at {_shown(self.offsets)}"
        return SourceError(f"'{self.label}' should hold '{brief(self.name)}' ({chunk}), and {problem}")

    def _in_stream(self, file: io.RawIOBase) -> _Place:
        tensor = locate_tensor(file, self.begin, self.length)
        checksums = Checksums(self.path)
        checksums.add(tensor.begin, tensor.end, tensor.member)
        return _Place(
            tensor.begin, tensor.end - tensor.begin, tensor.first, tensor.sizes, tensor.steps,
            spelled_type(tensor.dtype), ">" if tensor.big_endian else "<", checksums,
        )  # fmt: skip

    def _in_safetensors(self, stat: os.stat_result) -> _Place:
        header = _header(self.path, self.label, self.begin, stat.st_size - self.begin, stat.st_mtime_ns)
        entry = header.entries.get(self.name)
        if entry is None:
            raise self._refused("the safetensors there has no such tensor: fetch it again")
        offsets = saved_offsets(header.metadata, self.label)
        if offsets is not None and offsets.get(self.name) != self.offsets:
            raise self._refused(f"a chunk at {offsets.get(self.name)} lies there: fetch it again")
        begin, end = (self.begin + header.data_start + at for at in entry.data_offsets)
        steps = tuple(math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape)))
        return _Place(begin, end - begin, 0, entry.shape, steps, entry.dtype, "<", Checksums(self.path))


@lru_cache(maxsize=4)  # the chunks of a file lie below one header
def _header(path: Path, label: str, begin: int, size: int, _modified: int) -> Header:
    fill = partial(_fill_from, path, label, begin)
    return read_header(label, size, read_bytes(fill, 0, min(size, FIRST_READ)), partial(read_bytes, fill))


def _fill_from(path: Path, label: str, begin: int, offset: int, out: RawArray) -> None:
    read_range(path, label, begin + offset, out)


def _shown(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "()"
