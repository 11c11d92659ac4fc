"""Plain state dicts in files of torch.save, listed and read without torch: most of what torch.save ever wrote."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Hashable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from specdiag.checkpoint.checksums import Checksums
from specdiag.checkpoint.flat_pickle import FlatTensor, read_flat
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.parts import refuse_lone_part, refuse_part
from specdiag.checkpoint.plain_values import NUMPY_TYPES, plain_tensor, read_range
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.training_state import refuse_training_state
from specdiag.checkpoint.zip_entries import check_zip, extent, is_zip, read_member
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_TYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
"""safetensors' spelling of the values of a class of storages."""
_PICKLE = "data.pkl"


class _OtherFileError(Exception):
    """The file holds something else than whole tensors of plain types."""


def list_flat_file(path: Path, label: str) -> Listing | None:
    """List a file of torch.save that holds a plain state dict, each tensor all of a storage.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        Its tensors in stored order; None for any other file, a damaged one too, of which `list_torch_file` says more.

    Raises:
        SourceError: it is the state of an optimizer, or one process's part of a model.
    """
    refuse_part(path.absolute().as_posix(), label, lambda name: Path(name).exists())
    try:
        tensors = _list(path, label) if is_zip(path, label) else []
    except (_OtherFileError, SourceError, zipfile.BadZipFile, OSError, struct.error):
        return None
    if not tensors:
        return None
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    refuse_training_state({**shapes}, label)
    refuse_lone_part(shapes, label)
    return Listing(tensors)


def _list(path: Path, label: str) -> list[StoredTensor]:
    entries = check_zip(path, label)
    members = {entry.filename: entry for entry in entries}
    pickles = [name for name in members if name.rpartition("/")[2] == _PICKLE]
    root = pickles[0].removesuffix(_PICKLE)
    with path.open("rb") as file:
        size = path.stat().st_size
        order = members.get(f"{root}byteorder")
        is_little = order is None or read_member(order, file, size) == b"little"
        if len(pickles) > 1 or not is_little:
            raise _OtherFileError
        content = read_flat(read_member(members[pickles[0]], file, size))
        if not content:
            raise _OtherFileError
        checksums = Checksums(path)
        places: dict[str, tuple[int, int]] = {}
        shared: set[str] = set()
        for tensor in content.values():
            key = tensor.storage[2]
            if key in places:
                shared.add(key)
                continue
            entry = members.get(f"{root}data/{key}")
            if entry is None:
                raise _OtherFileError
            begin, end = places[key] = extent(entry, file, size)
            checksums.add(begin, end, entry)
    return [
        _stored(
            name, tensor, places[key := tensor.storage[2]], path, label, checksums,
            storage=(str(path), key, tensor.storage[1].name, tensor.shape) if key in shared else None,
        )
        for name, tensor in content.items()
    ]  # fmt: skip


def _stored(
    name: str, tensor: FlatTensor, place: tuple[int, int], path: Path, label: str, checksums: Checksums,
    storage: Hashable | None,
) -> StoredTensor:  # fmt: skip
    """Make the tensor of a whole storage, which has a name where other tensors show it, too."""
    (begin, end), shape = place, tensor.shape
    dtype = _TYPES.get(tensor.storage[1].name)
    n_values, strides = _contiguous(shape)
    if (
        dtype is None
        or tensor.offset
        or not n_values
        or n_values != tensor.storage[4]
        or n_values * NUMPY_TYPES[dtype].itemsize != end - begin
        or tensor.strides != strides
    ):
        raise _OtherFileError
    return plain_tensor(
        name, shape, dtype, offset=begin, nbytes=end - begin, label=label,
        fill=partial(_fill, path, label, checksums, name), storage=storage,
    )  # fmt: skip


@lru_cache
def _contiguous(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Count the values of a shape, and give its strides in C order."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * shape[axis]
    return math.prod(shape), tuple(strides)


def _fill(path: Path, label: str, checksums: Checksums, name: str, offset: int, out: RawArray) -> None:
    """Read the file, and compare what was read with the checksum of its member."""
    read_range(path, label, offset, out)
    checksums.refuse_damage(offset, out.reshape(-1).view(np.uint8), name, label)
