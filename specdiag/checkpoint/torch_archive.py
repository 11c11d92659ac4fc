"""Opening files of torch.save for their tensors. Nothing that they name is imported or run; values stay on disk."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import torch

from specdiag.checkpoint.file_map import FileMap
from specdiag.checkpoint.inert import ForeignClass
from specdiag.checkpoint.inert_unpickler import CrowdedError, InertUnpickler
from specdiag.checkpoint.no_tensors import refuse_arrays
from specdiag.checkpoint.torch_rebuild import StorageKind, StoredBytes, itemsize, known_names, makers
from specdiag.checkpoint.zip_entries import check_zip, is_zip
from specdiag.checkpoint.zip_members import Archive, MappedFile
from specdiag.errors import SourceError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
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
        members: names of a zip archive's members.
    """

    content: object
    foreign: tuple[str, ...]
    mapped: FileMap | None = None
    members: tuple[str, ...] = ()


def open_torch(path: Path, label: str, stem: str = "data") -> Opened:
    """Open a file of torch.save.

    Args:
        path: the file, zip format or the legacy one.
        label: its name in messages.
        stem: of the pickle in a zip archive; programs of TorchScript have a second one, `constants`.

    Returns:
        The content; values of the zip format stay on disk.

    Raises:
        SourceError: it is damaged, or no file of torch.save.
    """
    entries = check_zip(path, label, f"{stem}.pkl") if is_zip(path, label) else None
    try:
        return _open_legacy(path, label) if entries is None else _open_zip(path, entries, stem)
    except MemoryError as error:
        raise SourceError(f"'{label}' asks for more memory than there is: it is damaged, fetch it again") from error
    except CrowdedError as error:
        raise SourceError(f"'{label}' holds {error}: save the state_dict alone") from error
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(f"'{label}' is not a readable torch checkpoint ({reason}): fetch it again") from error


def _open_zip(path: Path, entries: Sequence[zipfile.ZipInfo], stem: str) -> Opened:
    with path.open("rb") as file:
        archive = Archive(path, file, entries)
        pickles = [name for name in archive.members if name.rpartition("/")[2] == f"{stem}.pkl"]
        pickled = min(pickles, key=lambda name: name.count("/"))
        root = pickled.removesuffix(f"{stem}.pkl")
        storages: dict[str, torch.UntypedStorage] = {}

        def load(storage_id: object) -> object:
            kind, key, n_values, _ = read_storage_id(storage_id)
            stored = storages.get(key)
            if stored is None:
                stored = storages[key] = archive.storage(f"{root}{stem}/{key}", kind.dtype, n_values)
            return StoredBytes(stored, kind.dtype)

        opened = _unpickled(io.BytesIO(archive.read(pickled)), load)
        return replace(opened, mapped=archive.place(), members=tuple(archive.members))


def _open_legacy(path: Path, label: str) -> Opened:
    """Read the pickle twice: where the values lie is written behind it."""
    with _Bounded(path.open("rb", buffering=0)) as file:
        content = _unpickled(file, _no_storage).content
        if content != _MAGIC or _unpickled(file, _no_storage).content != _PROTOCOL:
            refuse_arrays(content, label)
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
        mapped = MappedFile(path, "little" if little else "big")
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


class _Bounded(io.BufferedReader):
    """A file that never reads more than is left: a pickle may state a false length, and Python would allocate it."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


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
    if type(value) is str:
        return value
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
