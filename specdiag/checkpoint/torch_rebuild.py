"""Rebuilding tensors of torch.save from a storage, an offset, sizes and strides, all checked before use."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch

from specdiag.checkpoint.dtensors import NAMES as DTENSORS
from specdiag.checkpoint.dtensors import local_values
from specdiag.checkpoint.inert import ForeignClass, Inert
from specdiag.checkpoint.inert_unpickler import Maker
from specdiag.checkpoint.pickle_keys import checked_key
from specdiag.checkpoint.sharded_tensors import NAMES as SHARDED
from specdiag.checkpoint.sharded_tensors import local_shards
from specdiag.checkpoint.torch_tensors import Unread

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Untyped": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QUInt8": torch.quint8,
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
_HOMES = ("torch", "torch.storage", "torch.cuda")
_PLAIN_TYPES = ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.Tensor", "torch._tensor.Tensor")
_LARGEST = 1 << 62
_QUANTISED = frozenset((torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4))


@dataclass(frozen=True, slots=True)
class StorageKind:
    """A class of storages.

    Attributes:
        dtype: of its values.
    """

    dtype: torch.dtype


@dataclass(slots=True, eq=False)
class StoredBytes:
    """The bytes of one storage in the file.

    Attributes:
        values: the bytes, mapped and never written back; None while only their place is looked for.
        dtype: the type that they are stored under.
    """

    values: torch.UntypedStorage | None
    dtype: torch.dtype


def itemsize(dtype: torch.dtype) -> int:
    """Give the size of one stored value in bytes."""
    return dtype.itemsize


@cache
def known_names() -> dict[str, object]:
    """List everything that a file of torch.save may name, with what stands for it here. Nothing is imported."""
    dtypes = {str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
    storages = {f"{home}.{name}Storage": StorageKind(dtype) for home in _HOMES for name, dtype in _STORAGES.items()}
    return {**dtypes, **storages, **_MAKERS}


def makers() -> frozenset[Maker]:
    """List the functions among `known_names` that may be called."""
    return frozenset(_MAKERS.values())


def _plain(storage: object, offset: object, size: object, stride: object, *_: object) -> object:
    """Make a tensor as `_rebuild_tensor` does, with the storage's type."""
    return view_storage(storage, offset, size, stride, storage.dtype if isinstance(storage, StoredBytes) else None)


def _hooked(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    metadata: object = None,
) -> object:
    """Make a tensor as `_rebuild_tensor_v2` does, perhaps marked as conjugate or negative."""
    tensor = _plain(storage, offset, size, stride)
    return tensor if metadata is None else _marked(tensor, metadata)


def _typed(
    storage: object, offset: object, size: object, stride: object, _grad: object, _hooks: object, dtype: object,
    metadata: object = None,
) -> object:  # fmt: skip
    """Make a tensor as `_rebuild_tensor_v3` does: the type of the bytes is a separate argument."""
    return _marked(view_storage(storage, offset, size, stride, dtype), metadata)


def view_storage(storage: object, offset: object, size: object, stride: object, dtype: object) -> object:
    """Make a tensor of a part of a storage; an inert record where there is no storage or no type.

    Args:
        storage: the bytes.
        offset: place of the first value.
        size: of the tensor.
        stride: of the tensor.
        dtype: of its values.

    Raises:
        UnpicklingError: sizes or strides are no whole numbers, or reach beyond the storage.
    """
    if not isinstance(storage, StoredBytes) or not isinstance(dtype, torch.dtype):
        return Inert(ForeignClass("torch.Tensor"))
    (first,), sizes, steps = _whole((offset,)), _whole(size), _whole(stride)
    item = dtype.itemsize
    n_values = math.prod(sizes)
    if len(sizes) != len(steps) or n_values * item >= _LARGEST:
        raise pickle.UnpicklingError(f"a tensor of sizes {sizes} and strides {steps}"[:200])
    if storage.values is None:
        return Inert(ForeignClass("torch.Tensor"))
    reach = first + sum([(n - 1) * step for n, step in zip(sizes, steps, strict=True)]) + 1
    if n_values and reach * item > storage.values.nbytes():
        raise pickle.UnpicklingError(f"a tensor of {reach} values in {storage.values.nbytes()} bytes")
    if dtype in _QUANTISED:
        return Unread.of(sizes, torch.int8, "quantized")
    return torch.empty((0,), dtype=dtype).set_(storage.values, first, sizes, steps)


def _whole(values: object) -> tuple[int, ...]:
    """Check sizes, strides or an offset: whole numbers that are not negative."""
    if not isinstance(values, (list, tuple)):
        raise pickle.UnpicklingError("sizes that are no tuple")
    numbers = cast("Sequence[int]", values)
    for number in numbers:
        if type(number) is not int or not 0 <= number < _LARGEST:
            raise pickle.UnpicklingError("sizes or strides that are no whole numbers")
    return tuple(numbers)


def _marked(tensor: object, metadata: object) -> object:
    if not isinstance(tensor, torch.Tensor) or not isinstance(metadata, dict):
        return tensor
    marks = cast("dict[object, object]", metadata)
    tensor = tensor.conj() if marks.get("conj") is True and tensor.is_complex() else tensor
    return torch._neg_view(tensor) if marks.get("neg") is True else tensor  # pyright: ignore


def _parameter(data: object, *_: object) -> object:
    return data


def _of_type(maker: object, kind: object, args: object, state: object) -> object:
    """Make a tensor that was saved with attributes. One of a class of its own becomes an inert record."""
    plain = isinstance(kind, ForeignClass) and kind.name in _PLAIN_TYPES
    if plain and callable(maker) and maker in makers() - _COPYING and isinstance(args, tuple):
        return maker(*cast("tuple[object, ...]", args))
    foreign = kind if isinstance(kind, ForeignClass) else ForeignClass("torch.Tensor")
    if foreign.name in DTENSORS and (values := local_values(args, state)) is not None:
        return values
    if foreign.name in SHARDED and (values := local_shards(args, state)) is not None:
        return values
    return Inert(foreign, (args,))


def _sparse(layout: object, data: object) -> object:
    """Describe a sparse tensor, given as (indices, values, size, ..) or (rows, columns, values, size)."""
    parts = cast("Sequence[object]", data) if isinstance(data, (list, tuple)) else ()
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    size = next((part for part in parts if isinstance(part, (list, tuple))), ())
    return Unread.of(_whole(size), tensors[-1].dtype if tensors else torch.float32, str(layout).removeprefix("torch."))


def _quantized(_storage: object, _offset: object, size: object, *_: object) -> object:
    return Unread.of(_whole(size), torch.int8, "quantized")


def _nested(buffer: object, *_: object) -> object:
    if not isinstance(buffer, torch.Tensor):
        return Inert(ForeignClass("torch.Tensor"))
    return Unread.of([buffer.numel()], buffer.dtype, "nested: its rows have different lengths")


def _meta(dtype: object, size: object, *_: object) -> object:
    kind = dtype if isinstance(dtype, torch.dtype) else torch.float32
    return Unread.of(_whole(size), kind, "meta: it has no values")


def _layout(name: object) -> object:
    return name


def _encoded(text: object, encoding: object) -> object:
    """Make bytes from the text as which protocol 2 writes them."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("an encoding other than latin1")
    return text.encode("latin1")


def _ordered(pairs: object = ()) -> object:
    if isinstance(pairs, tuple) and not pairs:
        return OrderedDict()
    return OrderedDict((checked_key(key), value) for key, value in cast("Sequence[tuple[object, object]]", pairs))


def _set(elements: object = ()) -> object:
    return set(map(checked_key, cast("Sequence[object]", elements)))


def _size(sizes: object = ()) -> object:
    return _whole(sizes)


_COPYING: frozenset[Maker] = frozenset((_ordered, _set, _size, _encoded))
"""Functions that make no tensor, and copy what they are given."""
_MAKERS: dict[str, Maker] = {
    "torch._utils._rebuild_tensor": _plain,
    "torch._utils._rebuild_tensor_v2": _hooked,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.tensor._rebuild_from_type_v2": _of_type,
    "torch.serialization._get_layout": _layout,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
    "builtins.set": _set,
    "__builtin__.set": _set,
}
