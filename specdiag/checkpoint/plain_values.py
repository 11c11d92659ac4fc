"""Values by their place in a file, without a memory map and without torch: the base of all readers of formats.

Values are read by offset into a buffer of their own. A map would let the resident set grow to the size of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from io import RawIOBase
from pathlib import Path

import numpy as np

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

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


def plain_tensor(
    name: str, shape: Sequence[int], dtype: str, *, offset: int, nbytes: int, label: str, fill: Fill,
    storage: Hashable | None = None,
) -> StoredTensor:  # fmt: skip
    """Make a tensor whose values lie in one piece, in C order and little-endian. They are not read yet.

    Args:
        name: its key in the checkpoint.
        shape: as numpy has it.
        dtype: the safetensors spelling of its type. Values of a type that numpy lacks are read as flat bytes.
        offset: of its first byte in the file.
        nbytes: size of its values.
        label: the file, for messages.
        fill: reads the file, such as `partial(read_range, path, label)`; the tensor keeps it.
        storage: equal for two names of the same values; None where a file has none.

    Returns:
        The tensor; reading it raises what `fill` raises.
    """
    shape, kind = tuple(shape), NUMPY_TYPES.get(dtype)
    layout = ((nbytes,), np.dtype(np.uint8)) if kind is None else (shape, kind)
    return StoredTensor(name, shape, dtype, nbytes, label, partial(_read, fill, offset, *layout), storage)


def read_bytes(fill: Fill, begin: int, end: int) -> bytes:
    """Read the bytes from one offset to another.

    Args:
        fill: reads the file.
        begin: offset of the first byte.
        end: offset behind the last byte.

    Returns:
        `end - begin` bytes. Errors are those of `fill`.
    """
    out = np.empty(end - begin, np.uint8)
    fill(begin, out)
    return out.tobytes()


def read_range(path: Path, label: str, offset: int, out: RawArray) -> None:
    """Fill the C-contiguous array `out` with the bytes at `offset`. Each call opens the file: safe in threads.

    Args:
        path: the file.
        label: its name in messages.
        offset: of the first byte in the file.
        out: an array of any type; its size says how many bytes are read.

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


def _read(
    fill: Fill, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic], index: int | None = None
) -> RawArray:
    if index is not None:
        shape = shape[1:]
        offset += index * math.prod(shape) * dtype.itemsize
    out = np.empty(shape, dtype)
    fill(offset, out)
    return out
