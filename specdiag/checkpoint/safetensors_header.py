"""The header of a safetensors file, checked against the size of the file as the safetensors library checks it.

The library itself reads files alone. This header may also come from the hub, where no file is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Annotated, Any

import msgspec

from specdiag.errors import SourceError

FIRST_READ = 1 << 18
"""Bytes that hold the whole header of most files."""
_LARGEST = 100_000_000  # the library's limit
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""Bits of one value."""

_Natural = Annotated[int, msgspec.Meta(ge=0)]


class Entry(msgspec.Struct, frozen=True):
    """What the header says of one tensor; the offsets count from the end of the header."""

    dtype: str
    shape: tuple[_Natural, ...]
    data_offsets: tuple[_Natural, _Natural]


def read_header(label: str, size: int, head: bytes, read: Callable[[int, int], bytes]) -> tuple[dict[str, Entry], int]:
    """The tensors of a file by name, in the order of their data, and where their data begin.

    Args:
        label: the file's name in messages.
        size: of the whole file, bytes.
        head: its first `FIRST_READ` bytes, or all of them.
        read: gives the bytes from one offset to another.

    Raises:
        SourceError: the file is truncated, or its header is damaged. What `read` raises goes through.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8:
        raise _damaged(label, "it is too short for a header")
    if length > _LARGEST or 8 + length > size:
        raise _damaged(label, f"a header of {length} bytes in a file of {size}")
    text = head[8 : 8 + length] + (read(len(head), 8 + length) if 8 + length > len(head) else b"")
    try:
        return _parse(label, text, size - 8 - length), 8 + length
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise _damaged(label, str(error)) from error


def _parse(label: str, text: bytes, room: int) -> dict[str, Entry]:
    content = json.loads(text.decode(), object_pairs_hook=partial(_unique, label))
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    named: dict[str, Any] = {name.encode().decode(): value for name, value in content.items()}  # no lone surrogates
    msgspec.convert(named.pop("__metadata__", None), dict[str, str] | None)
    entries = msgspec.convert(named, dict[str, Entry])
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
    _check_layout(ordered, room)
    return ordered


def _check_layout(entries: Mapping[str, Entry], room: int) -> None:
    """Raise ValueError where data overlap, leave holes, or are not as long as their shapes and the file say."""
    at = 0
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if begin != at or end < begin:
            raise ValueError(f"the data of {name!r} lie at {begin} to {end}, those before end at {at}")
        if entry.dtype not in _SIZES:
            raise ValueError(f"{name!r} is of the unknown type {entry.dtype!r}")
        n_bits = math.prod(entry.shape) * _SIZES[entry.dtype]
        if n_bits != 8 * (end - begin) or max(accumulate(entry.shape, mul), default=0) >= 1 << 64:
            raise ValueError(f"{end - begin} bytes for {name!r}, {entry.dtype} of shape {list(entry.shape)}")
        at = end
    if at != room:
        raise ValueError(f"{at} bytes of data are listed and {room} are there")


def _unique(label: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"'{label}' is damaged: its header names '{twice}' twice; fetch it again")
    return result


def _damaged(label: str, problem: str) -> SourceError:
    return SourceError(
        f"'{label}' is not a readable safetensors file ({problem}): truncated or damaged, fetch it again"
    )
