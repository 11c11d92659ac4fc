"""Archives of numpy.savez, read without unpickling: an array of Python objects is left out by name."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.plain_values import NUMPY_TYPES
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError,
            MemoryError, RecursionError, OverflowError, zipfile.BadZipFile, zlib.error)  # fmt: skip
_TYPES = {kind: name for name, kind in NUMPY_TYPES.items() if not name.startswith(("F8_", "BF"))}
_DENSEST = 1100
"""Deflate cannot make bytes out of less than a thousandth of them."""
_LONGEST_HEADER = 10_000
_AXES = 64
"""Axes of an array in memory, at most."""
_AT_ONCE = 1 << 24


def list_npz(path: Path, label: str) -> Listing:
    """List the arrays of an archive, by their names with dots for slashes.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        The arrays, their values not read.

    Raises:
        SourceError: it is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)  # stays open: its directory is read once, not for each array
        tensors = [_stored(archive, entry, label) for entry in archive.infolist()]
    except _DAMAGED as error:
        raise _damaged(label, error) from error
    twice = duplicate(tensor.name for tensor in tensors)
    if twice is not None:
        raise SourceError(f"'{label}' holds two arrays of the name '{brief(twice)}': rename one")
    return Listing(tensors)


def _stored(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, label: str) -> StoredTensor:
    with archive.open(entry) as file:
        shape, fortran, dtype = _header(file)
        begin = file.tell()
    name = entry.filename.removesuffix(".npy").replace("/", ".")
    n_bytes = math.prod(shape) * dtype.itemsize
    is_plain = dtype.names is None and not dtype.hasobject and len(shape) <= _AXES
    kind = _TYPES.get(dtype.newbyteorder("<")) if is_plain else None
    if kind is not None and entry.file_size - begin != n_bytes:
        raise ValueError(f"'{brief(name)}' of {n_bytes} bytes in {entry.file_size - begin}")
    if entry.file_size > _DENSEST * entry.compress_size + _LONGEST_HEADER:
        raise ValueError(f"'{brief(name)}' of {entry.file_size} bytes in {entry.compress_size}")
    oddity = " (Python objects, which are never unpickled)" if dtype.hasobject else ""
    oddity = f" ({len(shape)} axes: at most {_AXES} can be read)" if len(shape) > _AXES else oddity
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=kind or f"{dtype!s:.60}{oddity}",
        nbytes=n_bytes,
        file=label,
        read=partial(_read, archive, label, entry, begin, shape, fortran, dtype),
    )


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read shape, order and type of an array, and stop where its values begin."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_LONGEST_HEADER)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=_LONGEST_HEADER)
    elif version == (3, 0):
        latin = _in_latin(file)
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(latin, max_header_size=_LONGEST_HEADER)
    else:
        raise ValueError(f"version {version} of numpy's format")
    if not all(type(size) is int and 0 <= size < 1 << 48 for size in shape) or math.prod(shape) >= 1 << 60:
        raise ValueError(f"an array of shape {shape!s:.60}")
    return shape, fortran, dtype


def _in_latin(file: IO[bytes]) -> IO[bytes]:
    """Read a header of version 3.0, which differs from 2.0 in the letters of names, and escape those."""
    length = int.from_bytes(file.read(4), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    header = file.read(length).decode("utf-8").encode("latin-1", "backslashreplace")
    return io.BytesIO(len(header).to_bytes(4, "little") + header)


def _read(
    archive: zipfile.ZipFile,
    label: str,
    entry: zipfile.ZipInfo,
    begin: int,
    shape: tuple[int, ...],
    fortran: bool,
    dtype: np.dtype[np.generic],
    index: int | None = None,
) -> RawArray:
    """Read an array to its end, where zipfile compares its checksum."""
    values: RawArray = np.empty(math.prod(shape), dtype)
    view = memoryview(values.view(np.uint8).data) if values.size else memoryview(b"")
    try:
        with archive.open(entry) as file:
            file.read(begin)
            done = 0
            while done < len(view):
                part = file.read(min(_AT_ONCE, len(view) - done))
                if not part:
                    raise EOFError(f"{len(view) - done} bytes are missing")
                view[done : done + len(part)] = part
                done += len(part)
            if file.read(1):
                raise ValueError("bytes behind its values")
    except _DAMAGED as error:
        raise _damaged(label, error) from error
    whole = values.reshape(shape, order="F" if fortran else "C")
    whole = whole if index is None else whole[index]
    return np.ascontiguousarray(whole.astype(dtype.newbyteorder("="), copy=False))


def _damaged(label: str, error: BaseException) -> SourceError:
    return SourceError(f"'{label}' is not a readable .npz archive ({brief(str(error), 200)}): fetch it again")
