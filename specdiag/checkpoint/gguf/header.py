"""The header of a GGUF file: its metadata, and where each tensor lies.

gguf.GGUFReader is not used: it maps the file, makes an object of every token, and trusts the lengths that it reads.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path

from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError

Number = int | float | bool
Value = Number | str | tuple[Number, ...]

_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""struct's letter for a type of value; the other two follow."""
_STRING, _ARRAY = 8, 9
_LONGEST_KEPT = 1024  # an array with a number for each layer is shorter, one for each token longer
_LARGEST_HEADER = 100_000_000  # safetensors' limit; a vocabulary of 300 k tokens takes a tenth
_MOST_ENTRIES = 100_000  # experts are stacked: the largest models have some thousand tensors
_MOST_AXES = 4
_LONGEST_NAME = (1 << 16) - 1  # the format's limit of keys
_MOST_KEPT = 2_000_000  # elements of an array that is asked for: no vocabulary has as many
_SHORTER = "it became shorter while it was read"
_LEAST_VALUE, _LEAST_TENSOR = 13, 24  # bytes that the shortest key with its value, or the shortest tensor, takes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The entry of one tensor in the header.

    Attributes:
        name: its name.
        shape: as numpy has it, so that a weight is (out, in); GGUF stores the reverse.
        type: ggml's number for the type of its values.
        offset: of its first byte in the file.
        room: bytes from there to the next tensor or the end of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    room: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a GGUF file: metadata and the list of tensors.

    Attributes:
        metadata: the values that are kept: numbers, strings, short arrays of numbers.
        lengths: the number of elements of each array, kept or not.
        tensors: in the order of their data.
        lists: the long arrays of numbers or strings that were asked for.
    """

    metadata: dict[str, Value]
    lengths: dict[str, int]
    tensors: tuple[TensorInfo, ...]
    lists: dict[str, Sequence[Number | str]]


def read_header(path: Path, label: str, keep: Set[str] = frozenset()) -> Header:
    """Read what stands before the data of a GGUF file.

    Args:
        path: the file.
        label: its name in messages.
        keep: keys of arrays that are kept whole, such as the tokens.

    Returns:
        The metadata and the places of the tensors; no values are read.

    Raises:
        SourceError: it cannot be read, is of a version or byte order that is not supported, is truncated, or damaged.
    """
    try:
        with path.open("rb") as file:
            return _parse(_Bounded(file), label, keep)
    except _Damaged as error:
        raise SourceError(
            f"'{label}' is not a readable GGUF file ({error}): truncated or damaged, fetch it again"
        ) from error
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error


class _Damaged(Exception):
    """The header cannot be valid; the message says why."""


class _Bounded:
    """A file that never reads more than is left: any length in it may be false."""

    def __init__(self, file: BufferedReader) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.at = 0
        self._file = file
        self._end = min(self.size, _LARGEST_HEADER)

    def require(self, n_bytes: int, piece: str) -> None:
        """Raise where fewer bytes are left."""
        if n_bytes > self._end - self.at:
            raise _Damaged(f"{piece} would reach beyond byte {self._end}")

    def bytes(self, n_bytes: int, piece: str) -> bytes:
        self.require(n_bytes, piece)
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise _Damaged(_SHORTER)
        self.at += n_bytes
        return data

    def skip(self, n_bytes: int, piece: str) -> None:
        self.require(n_bytes, piece)
        self._file.seek(n_bytes, os.SEEK_CUR)
        self.at += n_bytes

    def skip_strings(self, count: int, piece: str) -> None:
        """Skip strings, each behind its length: a vocabulary has some hundred thousand."""
        self.require(8 * count, piece)
        read, seek, left = self._file.read, self._file.seek, self._end - self.at
        for _ in range(count):
            head = read(8)
            length = int.from_bytes(head, "little")
            left -= 8 + length
            if left < 0:
                raise _Damaged(f"{piece} would reach beyond byte {self._end}")
            if len(head) != 8:
                raise _Damaged(_SHORTER)
            seek(length, os.SEEK_CUR)
        self.at = self._end - left

    def numbers(self, letters: str, piece: str) -> tuple[Number, ...]:
        layout = struct.Struct(f"<{letters}")
        return layout.unpack(self.bytes(layout.size, piece))

    def integer(self, letter: str, piece: str) -> int:
        return int(self.numbers(letter, piece)[0])

    def name(self, piece: str) -> str:
        length = self.integer("Q", piece)
        if length > _LONGEST_NAME:
            raise _Damaged(f"{piece} has {length} bytes")
        try:
            return self.bytes(length, piece).decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"{piece} is not UTF-8") from error


def _parse(file: _Bounded, label: str, keep: Set[str]) -> Header:
    file.skip(len(b"GGUF"), "the mark of the format")
    _check_version(file.integer("I", "the version"), label)
    n_tensors, n_values = (file.integer("Q", "the number of tensors") for _ in range(2))
    if max(n_tensors, n_values) > _MOST_ENTRIES:
        raise _Damaged(f"{n_tensors} tensors and {n_values} values")
    file.require(n_tensors * _LEAST_TENSOR + n_values * _LEAST_VALUE, f"{n_tensors} tensors and {n_values} values")
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    lists: dict[str, Sequence[Number | str]] = {}
    keys: set[str] = set()
    for _ in range(n_values):
        key = _new(file.name("a key of the metadata"), keys)
        kind = file.integer("I", f"the type of {brief(key)!r}")
        if key in keep and kind == _ARRAY:
            lists[key] = _list(file, key)
            continue
        value, length = _value(file, kind, key)
        if value is not None:
            metadata[key] = value
        if length is not None:
            lengths[key] = length
    names: set[str] = set()
    tensors = [_tensor(file, names) for _ in range(n_tensors)]
    return Header(metadata, lengths, tuple(_laid_out(tensors, file, metadata.get("general.alignment", 32))), lists)


def _check_version(version: int, label: str) -> None:
    if version in _VERSIONS:
        return
    if version and not version & 0xFFFF:
        raise SourceError(f"'{label}' is a big-endian GGUF file, not supported: gguf-convert-endian turns it round")
    if version == 1:
        raise SourceError(f"'{label}' is a GGUF file of version 1, not supported: convert the original again")
    raise SourceError(f"'{label}' is a GGUF file of version {version}; this specdiag reads versions 2 and 3")


def _value(file: _Bounded, kind: int, key: str) -> tuple[Value | None, int | None]:
    """Read a value of the metadata, and its number of elements where it is an array.

    Values that are not kept, such as long arrays, are skipped: None stands for them.
    """
    piece = f"the value of {brief(key)!r}"
    if kind in _NUMBERS:
        return file.numbers(_NUMBERS[kind], piece)[0], None
    if kind == _STRING:
        return file.bytes(file.integer("Q", piece), piece).decode(errors="replace"), None
    if kind != _ARRAY:
        raise _Damaged(f"{piece} is of the unknown type {kind}")
    inner, length = file.integer("I", piece), file.integer("Q", piece)
    if inner == _STRING:
        file.skip_strings(length, piece)
        return None, length
    if inner not in _NUMBERS:
        raise _Damaged(f"{piece} is an array of {'arrays' if inner == _ARRAY else f'the unknown type {inner}'}")
    if length <= _LONGEST_KEPT:
        return file.numbers(_NUMBERS[inner] * length, piece), length
    file.skip(length * struct.calcsize(f"<{_NUMBERS[inner]}"), piece)
    return None, length


def _list(file: _Bounded, key: str) -> Sequence[Number | str]:
    """Read a whole array of numbers or strings; its length is bounded by that of the header."""
    piece = f"the value of {brief(key)!r}"
    inner, length = file.integer("I", piece), file.integer("Q", piece)
    if length > _MOST_KEPT:
        raise _Damaged(f"{piece} has {length} elements")
    if inner == _STRING:
        file.require(8 * length, piece)
        return [file.bytes(file.integer("Q", piece), piece).decode(errors="replace") for _ in range(length)]
    if inner not in _NUMBERS:
        raise _Damaged(f"{piece} is an array of the type {inner}")
    layout = struct.Struct(f"<{_NUMBERS[inner]}")
    file.require(layout.size * length, piece)
    return [number for (number,) in layout.iter_unpack(file.bytes(layout.size * length, piece))]


def _tensor(file: _Bounded, names: set[str]) -> TensorInfo:
    """Read an entry. Its offset still counts from the beginning of the data, and its room is not yet known."""
    name = _new(file.name("the name of a tensor"), names)
    piece = f"the entry of {brief(name)!r}"
    n_axes = file.integer("I", piece)
    if n_axes > _MOST_AXES:
        raise _Damaged(f"{brief(name)!r} has {n_axes} axes")
    shape = tuple(int(n) for n in reversed(file.numbers("Q" * n_axes, piece)))
    return TensorInfo(name, shape, file.integer("I", piece), file.integer("Q", piece), 0)


def _new(name: str, names: set[str]) -> str:
    if name in names:
        raise _Damaged(f"its header names {brief(name)!r} twice")
    names.add(name)
    return name


def _laid_out(tensors: list[TensorInfo], file: _Bounded, alignment: Value) -> Iterator[TensorInfo]:
    """Yield the tensors with their places in the file, in that order."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"an alignment of {alignment!r}")
    start = -(-file.at // alignment) * alignment
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    ends = [*(start + tensor.offset for tensor in ordered), max(file.size, start)]
    for tensor, (begin, end) in zip(ordered, pairwise(ends), strict=True):
        if tensor.offset % alignment:
            raise _Damaged(f"{brief(tensor.name)!r} begins at {tensor.offset}, no multiple of {alignment}")
        if begin > end:
            raise _Damaged(f"{brief(tensor.name)!r} begins beyond the end of the file")
        yield TensorInfo(tensor.name, tensor.shape, tensor.type, begin, end - begin)
