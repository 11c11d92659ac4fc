"""A stream of torch.save within a file: where the values of its one tensor lie. They are not read here."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from functools import cache
from typing import BinaryIO, NamedTuple, NoReturn, cast

import torch

from specdiag.checkpoint.inert_unpickler import InertUnpickler, Maker
from specdiag.checkpoint.torch_archive import read_storage_id
from specdiag.checkpoint.torch_rebuild import known_names, makers
from specdiag.checkpoint.zip_entries import extent, read_member

_AT_ONCE = 1 << 20
"""Bytes of the longest directory of a zip archive with one tensor, and of its pickle."""
_LARGEST_OBJECT = 64 << 20
"""Bytes of the longest pickle without tensors: one may list the names of all parameters."""


class StreamedTensor(NamedTuple):
    """A tensor of a stream.

    Attributes:
        begin: offset in the file of the first byte of its storage.
        end: offset behind the last byte.
        first: its first value, counted in values from there.
        sizes: its shape.
        steps: its strides, counted in values.
        dtype: of its values.
        big_endian: whether they are in the byte order of other processors.
        member: of the archive, with its checksum.
    """

    begin: int
    end: int
    first: int
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    dtype: torch.dtype
    big_endian: bool
    member: zipfile.ZipInfo


def locate_tensor(file: io.RawIOBase, begin: int, length: int) -> StreamedTensor:
    """Find the values of the tensor that a stream of torch.save holds.

    Args:
        file: holds the stream.
        begin: offset of its first byte.
        length: of the stream.

    Returns:
        The place of the values.

    Raises:
        UnpicklingError: it holds something else than a plain tensor. Damage raises the errors of zipfile and pickle.
    """
    stream = cast("BinaryIO", _Window(file, begin, length, _AT_ONCE))
    members = _members(stream)
    order = members.get("byteorder")
    big_endian = order is not None and read_member(order, stream, length) == b"big"
    pickled = io.BytesIO(read_member(members["data.pkl"], stream, length))
    tensor: object = InertUnpickler(pickled, _names(), makers() | _MAKERS, _storage).load()
    if not isinstance(tensor, _Strided):
        raise pickle.UnpicklingError("no plain tensor")
    member = members[f"data/{tensor.storage.key}"]
    first_byte, end = extent(member, stream, length)
    return StreamedTensor(
        begin + first_byte, begin + end, tensor.first, tensor.sizes, tensor.steps, tensor.dtype, big_endian, member
    )


def read_object(file: io.RawIOBase, begin: int, length: int) -> object:
    """Read what a stream of torch.save holds beside tensors, such as a number or a list of names.

    Args:
        file: holds the stream.
        begin: offset of its first byte.
        length: of the stream.

    Returns:
        Plain containers, numbers and text; an inert record of anything else.

    Raises:
        UnpicklingError: it holds tensors. Damage raises the errors of zipfile and pickle.
    """
    stream = cast("BinaryIO", _Window(file, begin, length, _LARGEST_OBJECT))
    pickled = io.BytesIO(read_member(_members(stream)["data.pkl"], stream, length))
    return InertUnpickler(pickled, known_names(), makers(), _no_storage).load()


def _members(stream: BinaryIO) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
    members = {entry.filename.partition("/")[2]: entry for entry in entries}
    if len(members) < len(entries) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise zipfile.BadZipFile("its members are compressed, or have the same names")
    return members


def _no_storage(_: object) -> NoReturn:
    raise pickle.UnpicklingError("a tensor within an object")


class _Window(io.RawIOBase):
    """A range of a file as a file of its own, of which no more than so many bytes are read in one piece."""

    def __init__(self, file: io.RawIOBase, begin: int, length: int, at_once: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0
        self._at_once = at_once

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if origin + offset < 0:
            raise ValueError("a place before the beginning")
        self._at = origin + offset
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._length - self._at, 0)
        size = left if size < 0 else min(size, left)
        if size > self._at_once:
            raise zipfile.BadZipFile(f"a directory or pickle of {size} bytes")
        self._file.seek(self._begin + self._at)
        data = self._file.read(size) or b""
        self._at += len(data)
        return data


class _Storage(NamedTuple):
    """A storage that a pickle refers to."""

    key: str
    dtype: torch.dtype


class _Strided(NamedTuple):
    """A tensor that a pickle describes."""

    storage: _Storage
    dtype: torch.dtype
    first: int
    sizes: tuple[int, ...]
    steps: tuple[int, ...]


def _storage(storage_id: object) -> object:
    kind, key, _, _ = read_storage_id(storage_id)
    return _Storage(key, kind.dtype)


def _plain(
    storage: object, first: object, sizes: object, steps: object, _grad: object = None, _hooks: object = None,
    marks: object = None,
) -> object:  # fmt: skip
    return _typed(storage, first, sizes, steps, None, None, None, marks)


def _typed(
    storage: object, first: object, sizes: object, steps: object, _grad: object, _hooks: object, dtype: object,
    marks: object = None,
) -> object:  # fmt: skip
    if not isinstance(storage, _Storage) or marks:
        raise pickle.UnpicklingError("a tensor that is conjugate, negative or without a storage")
    (start,), shape, strides = _naturals((first,)), _naturals(sizes), _naturals(steps)
    if len(shape) != len(strides):
        raise pickle.UnpicklingError("as many strides as sizes are needed")
    return _Strided(storage, dtype if isinstance(dtype, torch.dtype) else storage.dtype, start, shape, strides)


def _naturals(values: object) -> tuple[int, ...]:
    numbers = cast("tuple[object, ...]", values) if isinstance(values, tuple) else (None,)
    if not all(type(number) is int and 0 <= number < 1 << 60 for number in numbers):
        raise pickle.UnpicklingError("sizes or strides that are no whole numbers")
    return cast("tuple[int, ...]", numbers)


_MAKERS: frozenset[Maker] = frozenset((_plain, _typed))


@cache
def _names() -> Mapping[str, object]:
    """List what the pickle of one tensor may name: tensors are described and not made."""
    return {
        **known_names(),
        "torch._utils._rebuild_tensor": _plain,
        "torch._utils._rebuild_tensor_v2": _plain,
        "torch._utils._rebuild_tensor_v3": _typed,
    }
