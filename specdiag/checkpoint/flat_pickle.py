"""Pickles of plain state dicts, as torch.save writes them, read by pickle's unpickler in C.

A grammar decides first, byte by byte, whether a pickle is one: a dictionary of names and tensors and nothing else,
whose steps make strings, numbers, tuples of numbers and the records below. Any other pickle is left to
`inert_unpickler`.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import Struct

_LONGEST = 1 << 26
"""Bytes of a pickle that is read here."""
_PUT = rb"(?:q.|r..[\x00-\x3f]\x00)?"
"""Memory of an object under a number of at most 22 bits: pickle keeps a table as long as the largest."""
_GET = rb"(?:h.|j..[\x00-\x3f]\x00)"
_WHOLE = rb"(?:K.|M..|J...[\x00-\x7f])"
_SIZES = rb"(?:\)|%(n)b\x85|(?:%(n)b){2}\x86|(?:%(n)b){3}\x87|\((?:%(n)b){4,8}t)" % {b"n": _WHOLE} + _PUT
_DEVICE = rb"X(?:\x03\x00\x00\x00cpu|\x06\x00\x00\x00cuda:\d|\x07\x00\x00\x00cuda:\d\d)"
_ORDERED = rb"(?:ccollections\nOrderedDict\n" + _PUT + rb"|" + _GET + rb")\)R" + _PUT


def _or_again(first: bytes) -> bytes:
    """Match the first mention of an object, or a later one."""
    return rb"(?:" + first + _PUT + rb"|" + _GET + rb")"


_TENSOR = re.compile(
    _PUT
    + _or_again(rb"ctorch\._utils\n_rebuild_tensor_v2\n")
    + rb"\(\("
    + _or_again(rb"X\x07\x00\x00\x00storage")
    + _or_again(rb"ctorch\n[A-Za-z0-9]{1,20}Storage\n")
    + _or_again(rb"X(.)\x00\x00\x00(\d{1,9})")
    + _or_again(_DEVICE)
    + _WHOLE
    + rb"t"
    + _PUT
    + rb"Q"
    + _WHOLE
    + _SIZES
    + _SIZES
    + rb"[\x88\x89]"
    + _ORDERED
    + rb"t"
    + _PUT
    + rb"R"
    + _PUT,
    re.DOTALL,
)
"""Steps behind the name of a tensor: its storage, an offset, sizes, strides, whether it had a gradient, no hooks."""
_TIED = re.compile(_PUT + _GET, re.DOTALL)
"""Steps behind the second name of a tensor."""
_BEGIN = re.compile(rb"\x80\x02(?:\}" + _PUT + rb"|" + _ORDERED + rb")", re.DOTALL)
_METADATA = re.compile(rb"\}" + _PUT + rb"X\x09\x00\x00\x00_metadata" + _PUT + _ORDERED, re.DOTALL)
_VERSION = re.compile(_PUT + rb"\}" + _PUT + rb"(?:" + _or_again(rb"X\x07\x00\x00\x00version") + rb"K.s)?", re.DOTALL)
"""Steps behind the name of a module in the versions that torch keeps beside a state dict, and that are not used."""
_MARK, _TEXT, _SET = pickle.MARK[0], pickle.BINUNICODE[0], pickle.SETITEMS[0]


@dataclass(slots=True)
class StorageClass:
    """A class of storages, by its name such as `FloatStorage`. It cannot be a key."""

    name: str


class FlatTensor(Struct, frozen=True):
    """The record of a tensor in a state dict, in the order of `torch._utils._rebuild_tensor_v2`.

    Attributes:
        storage: the word `storage`, class, key in the archive, device, and number of values.
        offset: place of the first value.
        shape: of the tensor.
        strides: of the tensor.
        requires_grad: whether it was trained.
        hooks: an empty dictionary.
    """

    storage: tuple[str, StorageClass, str, str, int]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: object


def read_flat(data: bytes) -> dict[str, FlatTensor] | None:
    """Read the pickle of a plain state dict.

    Args:
        data: the whole pickle.

    Returns:
        Names and tensors; None for any other pickle.
    """
    if len(data) > _LONGEST or not _is_flat(data):
        return None
    try:
        content = _Unpickler(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, MemoryError):
        return None  # numbers that stand for other objects than torch's; the other reader finds what they are
    if type(content) not in (dict, _Ordered) or not all(map(_is_tensor, content.values())):
        return None
    return content


def _is_tensor(value: object) -> bool:
    """Tell whether a record holds what its place says: numbers may stand for any earlier object."""
    if type(value) is not FlatTensor:
        return False
    word, kind, key, device, _ = value.storage
    return word == "storage" and type(kind) is StorageClass and type(key) is str and type(device) is str


def _is_flat(data: bytes) -> bool:
    begin = _BEGIN.match(data)
    end = None if begin is None else _pairs(data, begin.end(), _tensor)
    if end is None:
        return False
    versions = _METADATA.match(data, end)
    if versions is not None:
        end = _pairs(data, versions.end(), _version)
        return end is not None and data[end:] == b"sb."
    return data[end:] == b"."


def _pairs(data: bytes, position: int, value: Callable[[bytes, int], int | None]) -> int | None:
    """Pass names with their values, which are set one by one or many at once.

    Args:
        data: the pickle.
        position: of the first of them.
        value: passes one value from the end of its name; None where there is something else.

    Returns:
        The end of the last; None where something else lies between them.
    """
    is_open = False
    while position < len(data):
        code = data[position]
        if code == _TEXT:
            name = position + 5
            stop = name + int.from_bytes(data[position + 1 : name], "little")
            end = value(data, stop) if data[name:stop].isascii() else None
            if end is None:
                return None
            position = end
            if not is_open:
                if data[position : position + 1] != pickle.SETITEM:
                    return None
                position += 1
        elif code == _MARK and not is_open:
            is_open = True
            position += 1
        elif code == _SET and is_open:
            is_open = False
            position += 1
        else:
            break
    return None if is_open else position


def _tensor(data: bytes, position: int) -> int | None:
    found = _TENSOR.match(data, position)
    if found is None:
        tied = _TIED.match(data, position)
        return None if tied is None else tied.end()
    is_true = found[1] is None or found[1][0] == len(found[2])
    return found.end() if is_true else None


def _version(data: bytes, position: int) -> int | None:
    found = _VERSION.match(data, position)
    return None if found is None else found.end()


class _Ordered(dict[str, object]):
    """An OrderedDict of the file, without the versions of its modules."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Take no attributes."""


class _Unpickler(pickle.Unpickler):
    """Makes the records of a pickle that the grammar let through, and nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """Give what stands for one of the three kinds of names in the grammar."""
        if module_name == "collections":
            return _Ordered
        return FlatTensor if module_name == "torch._utils" else StorageClass(global_name)

    def persistent_load(self, pid: object, /) -> object:
        """Give the description of a storage as it is."""
        return pid
