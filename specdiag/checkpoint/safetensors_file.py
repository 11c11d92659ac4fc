"""Safetensors files, without a memory map and without torch.

The safetensors library validates the header; values are read by offset into a buffer of their own. A map
would let the resident set grow to the size of the file, and the library's numpy reader has no bfloat16.
"""

from __future__ import annotations

import json
import math
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
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


def list_safetensors(path: Path, label: str) -> list[StoredTensor]:
    """Every tensor of a safetensors file in the order of its data. Only the header is read.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: the file cannot be read, is truncated, or its header is damaged.
    """
    header, data_start = _header(path, label)
    header.pop("__metadata__", None)
    tensors = [_stored(path, label, name, entry, data_start) for name, entry in header.items()]
    return [tensor for _, tensor in sorted(tensors, key=lambda pair: pair[0])]


def read_range(path: Path, label: str, offset: int, out: NDArray[Any]) -> None:
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


def _header(path: Path, label: str) -> tuple[dict[str, Any], int]:
    try:
        with safe_open(path, framework="numpy"):  # validates types, shapes and offsets against the size of the file
            pass
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_header), object_pairs_hook=partial(_unique, label))
    except (SafetensorError, ValueError) as error:
        raise SourceError(
            f"'{label}' is not a readable safetensors file ({error}): truncated or damaged, fetch it again"
        ) from error
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror or error}") from error
    return header, 8 + n_header


def _unique(label: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"'{label}' is damaged: its header names '{twice}' twice; fetch it again")
    return result


def _stored(
    path: Path, label: str, name: str, entry: dict[str, Any], data_start: int
) -> tuple[tuple[int, int], StoredTensor]:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    read = partial(_read, path, label, data_start + begin, end - begin, shape, NUMPY_TYPES.get(dtype))
    return (begin, end), StoredTensor(name, shape, dtype, end - begin, label, read)


def _read(
    path: Path,
    label: str,
    offset: int,
    nbytes: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any] | None,
    index: int | None = None,
) -> NDArray[Any]:
    if dtype is None:
        shape, dtype = (nbytes,), np.dtype(np.uint8)
    if index is not None:
        shape = shape[1:]
        offset += index * math.prod(shape) * dtype.itemsize
    out = np.empty(shape, dtype)
    read_range(path, label, offset, out)
    return out
