"""Opening files of torch.save for their tensors. Nothing that they name is imported or run; values stay on disk."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from specdiag.checkpoint.checksums import Checksums, differs
from specdiag.checkpoint.file_map import FileMap
from specdiag.checkpoint.inert import CrowdedError, ForeignClass, InertUnpickler
from specdiag.checkpoint.plain_values import read_range
from specdiag.checkpoint.torch_rebuild import StorageKind, StoredBytes, itemsize, known_names, makers
from specdiag.errors import SourceError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LONGEST_LINE = 1 << 20
_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError,
    TypeError, AttributeError, AssertionError, RuntimeError, OverflowError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Opened:
    """The content of a file.

    Attributes:
        content: tensors in containers, and inert objects.
        foreign: the classes and functions that were not called.
        mapped: the memory that the file is mapped to; None where it is not mapped.
    """

    content: object
    foreign: tuple[str, ...]
    mapped: FileMap | None = None


def open_torch(path: Path, label: str) -> Opened:
    """Open a file of torch.save.

    Args:
        path: the file, zip format or the legacy one.
        label: its name in messages.

    Returns:
        The content; values of the zip format stay on disk.

    Raises:
        SourceError: it is damaged, or no file of torch.save.
    """
    from specdiag.checkpoint.torch_load import check_zip, is_zip

    entries = check_zip(path, label) if is_zip(path, label) else None
    try:
        return _open_legacy(path, label) if entries is None else _open_zip(path, entries)
    except MemoryError as error:
        raise SourceError(f"'{label}' asks for more memory than there is: it is damaged, fetch it again") from error
    except CrowdedError as error:
        raise SourceError(f"'{label}' holds {error}: save the state_dict alone") from error
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(f"'{label}' is not a readable torch checkpoint ({reason}): fetch it again") from error


class Archive:
    """The members of a zip archive that torch wrote, mapped to memory at their first use.

    Attributes:
        members: by name.
    """

    def __init__(self, path: Path, file: BinaryIO, entries: Sequence[zipfile.ZipInfo]) -> None:
        """Begin with the order of bytes.

        Args:
            path: the file.
            file: the same, open.
            entries: its members, checked by `check_zip`.
        """
        self.members = {entry.filename: entry for entry in entries}
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        order = next((name for name in self.members if name.rpartition("/")[2] == "byteorder"), None)
        self._mapped = _Mapped(path, "little" if order is None else self.read(order).decode("ascii"))

    def read(self, member: str) -> bytes:
        """Read all of a small member.

        Args:
            member: its name.
        """
        return read_member(self.members[member], self._file, self._size)

    def storage(self, member: str, dtype: torch.dtype, n_values: int | None = None) -> torch.UntypedStorage:
        """Give the bytes of a member, which stay on disk.

        Args:
            member: its name.
            dtype: of its values.
            n_values: how many of them are wanted; None for all.

        Raises:
            UnpicklingError: it holds fewer.
        """
        begin, end = extent(self.members[member], self._file, self._size)
        self._mapped.checksums.add(begin, end, self.members[member])
        n_bytes = end - begin if n_values is None else n_values * itemsize(dtype)
        if n_bytes > end - begin:
            raise pickle.UnpicklingError(f"{member!r:.60} of {n_bytes} bytes in {end - begin}")
        return self._mapped.bytes(begin, n_bytes, dtype)

    def place(self) -> FileMap | None:
        """Locate the file in memory, None where it was not mapped."""
        return self._mapped.place()


def _open_zip(path: Path, entries: Sequence[zipfile.ZipInfo]) -> Opened:
    with path.open("rb") as file:
        archive = Archive(path, file, entries)
        pickles = [name for name in archive.members if name.rpartition("/")[2] == "data.pkl"]
        pickled = min(pickles, key=lambda name: name.count("/"))
        root = pickled.removesuffix("data.pkl")
        storages: dict[str, torch.UntypedStorage] = {}

        def load(storage_id: object) -> object:
            kind, key, n_values, _ = read_storage_id(storage_id)
            if key not in storages:
                storages[key] = archive.storage(f"{root}data/{key}", kind.dtype, n_values)
            return StoredBytes(storages[key], kind.dtype)

        opened = _unpickled(io.BytesIO(archive.read(pickled)), load)
        return replace(opened, mapped=archive.place())


def read_member(entry: zipfile.ZipInfo, file: BinaryIO, size: int) -> bytes:
    """Read all of a small member of an archive, and compare it with its checksum.

    Args:
        entry: the member.
        file: the archive.
        size: of the archive, bytes.

    Raises:
        BadZipFile: it is damaged.
    """
    begin, end = extent(entry, file, size)
    file.seek(begin)
    data = file.read(end - begin)
    if differs(entry, zlib.crc32(data)):
        raise _damaged(entry.filename)
    return data


def _damaged(member: str) -> zipfile.BadZipFile:
    return zipfile.BadZipFile(f"the checksum of {member!r:.60} is another one")


def _open_legacy(path: Path, label: str) -> Opened:
    """Read the pickle twice: where the values lie is written behind it."""
    with _Bounded(path.open("rb", buffering=0)) as file:
        if _unpickled(file, _no_storage).content != _MAGIC or _unpickled(file, _no_storage).content != _PROTOCOL:
            raise SourceError(f"'{label}' is a pickle, but not one that torch.save wrote: save it with torch.save")
        system = _unpickled(file, _no_storage).content
        little = not isinstance(system, dict) or cast("dict[str, object]", system).get("little_endian", True)
        begin, kinds = file.tell(), dict[str, torch.dtype]()

        def look(storage_id: object) -> object:
            if (module := _module(storage_id)) is not None:
                return module
            kind, key, _, _ = read_storage_id(storage_id)
            kinds.setdefault(key, kind.dtype)
            return StoredBytes(None, kind.dtype)

        _unpickled(file, look)
        keys = _unpickled(file, _no_storage).content
        places = _places(file, [_text(key) for key in cast("list[object]", keys)], kinds)
        mapped = _Mapped(path, "little" if little else "big")
        storages = {key: mapped.bytes(*place, kinds[key]) for key, place in places.items()}

        def load(storage_id: object) -> object:
            if (module := _module(storage_id)) is not None:
                return module
            kind, key, _, view = read_storage_id(storage_id)
            return StoredBytes(_part(storages[key], view, itemsize(kind.dtype)), kind.dtype)

        file.seek(begin)
        return replace(_unpickled(file, load), mapped=mapped.place())


def _places(file: BinaryIO, keys: list[str], kinds: dict[str, torch.dtype]) -> dict[str, tuple[int, int]]:
    """Read the first byte and the number of bytes of each storage, which follow a count of values."""
    size, places = os.fstat(file.fileno()).st_size, dict[str, tuple[int, int]]()
    for key in keys:
        (n_values,) = struct.unpack("<q", file.read(8))
        begin, n_bytes = file.tell(), n_values * itemsize(kinds[key])
        if n_values < 0 or begin + n_bytes > size:
            raise pickle.UnpicklingError(f"storage {key} of {n_bytes} bytes, and {size - begin} are left")
        places[key] = (begin, n_bytes)
        file.seek(begin + n_bytes)
    return places


class _Mapped:
    """A file that is mapped to memory at its first use. Changes to its pages are not written back."""

    def __init__(self, path: Path, order: str) -> None:
        if order not in ("little", "big"):
            raise pickle.UnpicklingError(f"byte order {order!r:.20}")
        self._path = path
        self._swap = order != sys.byteorder
        self._whole: torch.UntypedStorage | None = None
        self.checksums = Checksums(path)

    def bytes(self, begin: int, n_bytes: int, dtype: torch.dtype) -> torch.UntypedStorage:
        """Give bytes of the file: a copy where they are not aligned, or in the byte order of another processor."""
        if n_bytes == 0:
            return torch.UntypedStorage(0)
        if begin % itemsize(dtype) or self._swap:
            return self._copied(begin, n_bytes, dtype)
        if self._whole is None:
            size = self._path.stat().st_size
            self._whole = cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(self._path), False, size))
        return self._whole[begin : begin + n_bytes]

    def _copied(self, begin: int, n_bytes: int, dtype: torch.dtype) -> torch.UntypedStorage:
        values = np.empty(n_bytes, np.uint8)
        read_range(self._path, str(self._path), begin, values)
        member = self.checksums.damaged_member(begin, values)
        if member is not None:
            raise _damaged(member)
        part = torch.from_numpy(values).untyped_storage()
        if self._swap:
            part.byteswap(dtype)
        return part

    def place(self) -> FileMap | None:
        """Locate the file in memory, None where it was not mapped."""
        if self._whole is None:
            return None
        return FileMap(self._path, self._whole.data_ptr(), self._whole.nbytes(), self.checksums)


class _Bounded(io.BufferedReader):
    """A file that never reads more than is left: a pickle may state a false length, and Python would allocate it."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))

    def readline(self, size: int | None = -1, /) -> bytes:
        del size
        return super().readline(_LONGEST_LINE)


def _unpickled(file: BinaryIO, load: Callable[[object], object]) -> Opened:
    unpickler = InertUnpickler(file, known_names(), makers(), load)
    content: object = unpickler.load()
    return Opened(content, tuple(unpickler.foreign))


def _no_storage(storage_id: object) -> object:
    raise pickle.UnpicklingError(f"a storage outside the data, {storage_id!r:.60}")


def _module(storage_id: object) -> ForeignClass | None:
    """Find the class of a module, which files of the legacy format store with its source code."""
    fields = list(cast("tuple[object, ...]", storage_id)) if isinstance(storage_id, tuple) else []
    return fields[1] if len(fields) > 1 and fields[0] == "module" and isinstance(fields[1], ForeignClass) else None


def read_storage_id(storage_id: object) -> tuple[StorageKind, str, int, object]:
    """Read kind, key, number of values and view of a storage.

    Args:
        storage_id: what the pickle of a file of torch.save gives in the place of a storage.

    Raises:
        UnpicklingError: it is something else.
    """
    fields = list(cast("tuple[object, ...]", storage_id)) if isinstance(storage_id, tuple) else []
    if len(fields) not in (5, 6) or _text(fields[0]) != "storage":
        raise pickle.UnpicklingError("an object outside the file that is no storage")
    _, kind, key, _, n_values, *view = fields
    if not isinstance(kind, StorageKind) or type(n_values) is not int or not 0 <= n_values < 1 << 60:
        raise pickle.UnpicklingError("a storage of no known kind or size")
    return kind, _text(key), n_values, view[0] if view else None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (str, int)):
        return str(value)
    raise pickle.UnpicklingError(f"a key of the type {type(value).__name__}")


def _part(storage: torch.UntypedStorage, view: object, size: int) -> torch.UntypedStorage:
    """Cut a part of a storage, as files before torch 0.4 name them."""
    if view is None:
        return storage
    _, offset, n_values = cast("tuple[object, object, object]", view)
    if type(offset) is not int or type(n_values) is not int or min(offset, n_values) < 0:
        raise pickle.UnpicklingError("a view of no known size")
    if (offset + n_values) * size > storage.nbytes():
        raise pickle.UnpicklingError("a view beyond its storage")
    return storage[offset * size : (offset + n_values) * size]


def extent(entry: zipfile.ZipInfo, file: BinaryIO, size: int) -> tuple[int, int]:
    """Find the first byte of a stored member, past its own header, and the byte behind the last.

    Args:
        entry: the member.
        file: the archive.
        size: of the archive, bytes.

    Raises:
        BadZipFile: the archive is too short for it, or holds something else there.
    """
    file.seek(entry.header_offset)
    head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {entry.filename!r:.60}")
    name, extra = struct.unpack("<HH", head[26:30])
    begin = entry.header_offset + 30 + name + extra
    end = begin + entry.file_size
    if end > size:
        raise zipfile.BadZipFile(f"{entry.filename!r:.60} reaches beyond the file")
    return begin, end
