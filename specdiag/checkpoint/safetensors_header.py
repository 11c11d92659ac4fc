"""The header of a safetensors file, checked against the size of the file as the safetensors library checks it.

The library itself reads files alone. This header may also come from the hub, where no file is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Annotated

import msgspec

from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.wrappers import duplicate
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

_METADATA = "__metadata__"
_KEYS = (b'"dtype"', b'"shape"', b'"data_offsets"')
_Natural = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Entry(msgspec.Struct, frozen=True):
    """The entry of one tensor in the header. Its offsets count from the end of the header."""

    dtype: Annotated[str, msgspec.Meta(max_length=32)]
    shape: Annotated[tuple[_Natural, ...], msgspec.Meta(max_length=64)]
    data_offsets: tuple[_Natural, _Natural]


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file.

    Attributes:
        entries: the tensors by name, in the order of their data.
        metadata: texts by name, which the writer added.
        data_start: offset at which the data begin.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(Entry)
_METADATA_DECODER = msgspec.json.Decoder(dict[str, str] | None)


def read_header(label: str, size: int, head: bytes, read: Callable[[int, int], bytes]) -> Header:
    """Read the header of a safetensors file and check it against the size of the file.

    Args:
        label: the file's name in messages.
        size: of the whole file, bytes.
        head: its first `FIRST_READ` bytes, or all of them.
        read: gives the bytes from one offset to another.

    Returns:
        The tensors, and what its writer added.

    Raises:
        SourceError: the file is truncated, or its header is damaged. Errors of `read` pass through.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8:
        raise _damaged(label, "it is too short for a header")
    if length > _LARGEST or 8 + length > size:
        raise _damaged(label, f"a header of {length} bytes in a file of {size}")
    text = head[8 : 8 + length] + (read(len(head), 8 + length) if 8 + length > len(head) else b"")
    try:
        entries, metadata = _parse(text, size - 8 - length)
        return Header(entries, metadata, 8 + length)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise _damaged(label, brief(str(error), 500)) from error


def _parse(text: bytes, room: int) -> tuple[dict[str, Entry], dict[str, str]]:
    entries, metadata = _entries(text)
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
    _check_layout(ordered, room)
    return ordered, metadata


def _entries(text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    """Decode the entries by name, and the metadata, and refuse a key that comes twice in one object.

    msgspec keeps the last of two equal keys. Where the text has as many of each key as there are entries, none comes
    twice. Otherwise, or where a backslash may hide a key, the slower decoder looks at every object.
    """
    raw_entries = _DECODER.decode(text)
    names = raw_entries.keys() - {_METADATA}
    if b"\\" in text or any(text.count(key) != len(names) for key in _KEYS):
        json.loads(text, object_pairs_hook=_unique)
    metadata = _METADATA_DECODER.decode(raw_entries[_METADATA]) if _METADATA in raw_entries else None
    return {name: _ENTRY.decode(value) for name, value in raw_entries.items() if name != _METADATA}, metadata or {}


def _check_layout(entries: Mapping[str, Entry], room: int) -> None:
    """Raise ValueError where data overlap, leave holes, or are not as long as their shapes and the file say.

    The length of values of an unknown type is not checked.
    """
    at = 0
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if begin != at or end < begin:
            raise ValueError(f"the data of {brief(name)!r} lie at {begin} to {end}, those before end at {at}")
        bits = _SIZES.get(entry.dtype)
        if bits is not None and (math.prod(entry.shape) * bits != 8 * (end - begin) or _overflows(entry.shape)):
            shape = brief(str(list(entry.shape)))
            raise ValueError(f"{end - begin} bytes for {brief(name)!r}, {entry.dtype} of shape {shape}")
        at = end
    if at != room:
        raise ValueError(f"{at} bytes of data are listed and {room} are there")


def _overflows(shape: tuple[int, ...]) -> bool:
    """Tell whether the sizes before a 0 are too many for the number that the safetensors library counts with."""
    return 0 in shape and max(accumulate(shape, mul)) >= 1 << 64


def _unique(pairs: list[tuple[str, object]]) -> None:
    twice = duplicate(name for name, _ in pairs)
    if twice is not None:
        raise ValueError(f"its header names {brief(twice)!r} twice")


def _damaged(label: str, problem: str) -> SourceError:
    return SourceError(
        f"'{label}' is not a readable safetensors file ({problem}): truncated or damaged, fetch it again"
    )
