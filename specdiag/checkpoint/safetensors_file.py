"""Safetensors files, without a memory map and without torch.

Values are read by offset into a buffer of their own. A map would let the resident set grow to the size of the
file, and the library's numpy reader has no bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from io import RawIOBase
from pathlib import Path

import numpy as np

from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.safetensors_header import FIRST_READ, Entry, read_header
from specdiag.checkpoint.tensors import RawArray, StoredTensor
from specdiag.errors import SourceError

NUMPY_TYPES: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), np.dtype("u1")),
}
"""numpy's type for a stored one, bytes for codes of 8 bits. Other types that numpy lacks are read as flat bytes."""

_LARGEST_READ = 1 << 30  # one call may not ask for 2 GiB on macOS


Fill = Callable[[int, RawArray], None]
"""Fills a C-contiguous array with the bytes of a file at an offset."""


def list_safetensors(path: Path, label: str) -> Listing:
    """List every tensor of a safetensors file in the order of its data. Only the header is read.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: the file cannot be read, is truncated, or its header is damaged.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error
    fill = partial(read_range, path, label)
    return list_by_ranges(label, size, read_bytes(fill, 0, min(size, FIRST_READ)), fill)


def list_by_ranges(label: str, size: int, head: bytes, fill: Fill) -> Listing:
    """List every tensor of a safetensors file that is read by `fill`, wherever it lies. Only the header is read.

    Args:
        label: its name in messages.
        size: of the whole file, bytes.
        head: its first `FIRST_READ` bytes, or all of them.
        fill: reads it; the tensors keep it.

    Raises:
        SourceError: the file is truncated, or its header is damaged. What `fill` raises goes through.
    """
    header, data_start = read_header(label, size, head, partial(read_bytes, fill))
    return Listing([_stored(label, name, entry, data_start, fill) for name, entry in header.items()])


def read_bytes(fill: Fill, begin: int, end: int) -> bytes:
    """The bytes from one offset to another."""
    out = np.empty(end - begin, np.uint8)
    fill(begin, out)
    return out.tobytes()


def read_range(path: Path, label: str, offset: int, out: RawArray) -> None:
    """Fill the C-contiguous array `out` with the bytes at `offset`. Each call opens the file: safe in threads.

    Raises:
        SourceError: the file is gone, unreadable, or shorter than it was when its header was read.
    """
    view = out.reshape(-1).view(np.uint8).data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            _fill(file, view)
    except EOFError:
        raise SourceError(
            f"'{label}' ends before byte {offset + len(view)}: it was cut short or replaced meanwhile; "
            "run again when nothing writes to it"
        ) from None
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error


def _fill(file: RawIOBase, view: memoryview) -> None:
    done = 0
    while done < len(view):
        n_read = file.readinto(view[done : done + _LARGEST_READ])
        if not n_read:
            raise EOFError
        done += n_read


def _stored(label: str, name: str, entry: Entry, data_start: int, fill: Fill) -> StoredTensor:
    begin, end = entry.data_offsets
    read = partial(_read, fill, data_start + begin, end - begin, entry.shape, NUMPY_TYPES.get(entry.dtype))
    return StoredTensor(name, entry.shape, entry.dtype, end - begin, label, read)


def _read(
    fill: Fill,
    offset: int,
    nbytes: int,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic] | None,
    index: int | None = None,
) -> RawArray:
    if dtype is None:
        shape, dtype = (nbytes,), np.dtype(np.uint8)
    if index is not None:
        shape = shape[1:]
        offset += index * math.prod(shape) * dtype.itemsize
    out = np.empty(shape, dtype)
    fill(offset, out)
    return out
