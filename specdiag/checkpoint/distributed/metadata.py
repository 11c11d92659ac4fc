"""The `.metadata` of torch.distributed.checkpoint: which tensors there are, and in which file each chunk of them lies.

It is a bare pickle. Nothing that it names is imported or run: its objects are inert records, told apart by their class
names alone, for torch 2.3 moved some of these classes.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, cast

import torch

from specdiag.checkpoint.distributed.fields import (
    LARGEST,
    class_of,
    dtype_of,
    fields_of,
    mapping_of,
    place_of,
    sizes_of,
    whole,
)  # fmt: skip
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.inert_unpickler import CrowdedError, InertUnpickler
from specdiag.checkpoint.long_names import LONGEST, brief
from specdiag.checkpoint.torch_rebuild import known_names, makers
from specdiag.errors import SourceError
from specdiag.files import read_whole

_LARGEST_FILE = 256 << 20
_BYTES_PER_OBJECT = 16
"""A chunk takes 140 bytes, and six objects."""
_MOST_OBJECTS = 6_000_000
_MOST_CHUNKS = 600_000
"""Largest number of chunks of a model: tensors may share the records of theirs."""
_DEEPEST = 64
_DAMAGED = (
    pickle.UnpicklingError, struct.error, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    RuntimeError, OverflowError,
)  # fmt: skip


_Places = Mapping[tuple[str, tuple[int, ...]], object]


class SavedTensor(NamedTuple):
    """A tensor as `.metadata` lists it.

    Attributes:
        path: the keys that led to it in the state dict that was saved.
        shape: of the whole tensor.
        dtype: of its values.
        chunks: the inert records of its chunks, not checked yet.
    """

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[object]


class StoredChunk(NamedTuple):
    """A chunk of a tensor, and where its values are stored.

    Attributes:
        offsets: of its first value in the tensor.
        sizes: its shape.
        file: relative to the folder of `.metadata`, as written there.
        begin: first byte of what was stored for it.
        length: bytes that were stored for it.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    length: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """The content of `.metadata`.

    Attributes:
        tensors: by their flat names, in stored order.
        objects: the keys that led to everything else that was saved, by its flat names.
        label: the file's name in messages.
    """

    tensors: Mapping[str, SavedTensor]
    objects: Mapping[str, tuple[str | int, ...]]
    label: str
    _stored: Mapping[object, object]

    def chunks(self, names: Collection[str]) -> dict[str, list[StoredChunk]]:
        """Find where the chunks of some tensors are stored.

        Args:
            names: flat names of `tensors`.

        Returns:
            The chunks of each, in stored order.

        Raises:
            SourceError: `.metadata` is damaged, a chunk is stored nowhere, or it is compressed.
        """
        with _reported(self.label):
            places = {place: stored for index, stored in self._stored.items() if (place := place_of(index))[0] in names}
            if sum(len(self.tensors[name].chunks) for name in names) > _MOST_CHUNKS:
                raise CrowdedError(f"more than {_MOST_CHUNKS} chunks")
            return {name: [self._chunk(name, record, places) for record in self.tensors[name].chunks] for name in names}

    def places(self, names: Collection[str]) -> dict[str, StoredChunk]:
        """Find where some objects are stored, each in one piece without offsets and sizes.

        Args:
            names: flat names of `objects`.

        Raises:
            SourceError: as for `chunks`.
        """
        with _reported(self.label):
            places = {place: stored for index, stored in self._stored.items() if (place := place_of(index))[0] in names}
            return {name: self._stored_chunk(name, (), (), places) for name in names}

    def _chunk(self, name: str, record: object, places: _Places) -> StoredChunk:
        fields = fields_of(record, "ChunkStorageMetadata")
        return self._stored_chunk(name, sizes_of(fields["offsets"]), sizes_of(fields["sizes"]), places)

    def _stored_chunk(
        self, name: str, offsets: tuple[int, ...], sizes: tuple[int, ...], places: _Places
    ) -> StoredChunk:
        stored = places.get((name, offsets))
        if stored is None:
            raise SourceError(
                f"'{self.label}' names no file for the chunk of '{brief(name)}' at {list(offsets)}: "
                "the save did not finish, or it is damaged"
            )
        info = fields_of(stored, "_StorageInfo")
        if info.get("transform_descriptors"):
            raise SourceError(
                f"'{self.label}' says that '{brief(name)}' was transformed when it was saved "
                f"({brief(repr(info['transform_descriptors']))}), which is not supported: save without extensions"
            )
        file = info["relative_path"]
        if not isinstance(file, str):
            raise TypeError("a file without a name")
        return StoredChunk(offsets, sizes, file, whole(info["offset"]), whole(info["length"]))


def read_metadata(path: Path, label: str) -> Metadata:
    """Read `.metadata`.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        The tensors that it lists. Their chunks are looked up when they are asked for.

    Raises:
        SourceError: it cannot be read, is damaged, or holds more than any checkpoint has.
    """
    try:
        data = read_whole(path, min(_LARGEST_FILE, path.stat().st_size))
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error
    with _reported(label):
        fields = fields_of(_unpickled(data), "Metadata")
        planned = fields.get("planner_data")
        paths = cast("dict[object, object]", planned) if isinstance(planned, dict) else {}
        entries = mapping_of(fields["state_dict_metadata"])
        tensors = dict(_tensors(entries, paths))
        objects = {name: _path(name, paths.get(name)) for name in entries if isinstance(name, str)}
        objects = {name: keys for name, keys in objects.items() if name not in tensors}
        return Metadata(tensors, objects, label, mapping_of(fields["storage_data"]))


def _unpickled(data: bytes) -> object:
    most = min(_MOST_OBJECTS, 1000 + len(data) // _BYTES_PER_OBJECT)
    unpickler = InertUnpickler(io.BytesIO(data), known_names(), makers(), _nothing_outside, most)
    return unpickler.load()


def _nothing_outside(_: object) -> NoReturn:
    raise pickle.UnpicklingError("an object outside the file")


@contextmanager
def _reported(label: str) -> Generator[None]:
    try:
        yield
    except MemoryError as error:
        raise SourceError(f"'{label}' asks for more memory than there is: it is damaged, fetch it again") from error
    except CrowdedError as error:
        raise SourceError(f"'{label}' holds {error}, more than a checkpoint of its size has: fetch it again") from error
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(
            f"'{label}' is no readable metadata of a distributed checkpoint ({reason}): fetch it again"
        ) from error


def _tensors(entries: Mapping[object, object], paths: Mapping[object, object]) -> Iterator[tuple[str, SavedTensor]]:
    for name, record in entries.items():
        if not isinstance(name, str):
            raise TypeError(f"a tensor named {name!r:.60}")
        if isinstance(record, Inert) and class_of(record) == "BytesStorageMetadata":
            continue
        fields = fields_of(record, "TensorStorageMetadata")
        chunks = fields["chunks"]
        if not isinstance(chunks, list):
            raise TypeError("chunks that are no list")
        dtype = dtype_of(fields["properties"])
        path = _path(name, paths.get(name))
        yield name, SavedTensor(path, sizes_of(fields["size"]), dtype, cast("list[object]", chunks))


def _path(name: str, planned: object) -> tuple[str | int, ...]:
    """Give the keys that led to a tensor; its name alone where they are not told, or are no keys of a state dict."""
    keys = cast("tuple[object, ...]", planned) if isinstance(planned, tuple) else ()
    if not 0 < len(keys) <= _DEEPEST:
        return (name,)
    plain = all(
        (isinstance(key, str) and len(key) <= LONGEST) or (type(key) is int and abs(key) < LARGEST) for key in keys
    )
    return cast("tuple[str | int, ...]", keys) if plain else (name,)
