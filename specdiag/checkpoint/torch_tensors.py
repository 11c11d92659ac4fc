"""Stored tensors from tensors that torch holds: a state dict, a live model, a file that torch loaded."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache, partial

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from specdiag.checkpoint.divided import Owned
from specdiag.checkpoint.file_map import FileMap
from specdiag.checkpoint.repeats import Repeats
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "complex64": "C64",
    "complex128": "C128",
    "bool": "BOOL",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}
"""safetensors' spelling of torch's types; the rest keep torch's."""

_AXES = 64
"""Axes of an array of numpy, at most."""
_TWO_A_BYTE = "float4_e2m1fn_x2"


class Unread(torch.Tensor):
    """A tensor of a file that has a shape and a type, and no values that can be read.

    Attributes:
        oddity: why its values cannot be read.
    """

    oddity: str

    @staticmethod
    def of(size: Sequence[int], dtype: torch.dtype, oddity: str) -> Unread:
        """Make a tensor without values.

        Args:
            size: its shape.
            dtype: its type.
            oddity: why its values cannot be read.
        """
        tensor = torch.empty(tuple(size), dtype=dtype, device="meta").as_subclass(Unread)
        tensor.oddity = oddity
        return tensor


def list_tensors(tensors: Mapping[str, torch.Tensor], label: str, mapped: FileMap | None = None) -> list[StoredTensor]:
    """Make a stored tensor of each entry, in order. Nothing is copied until it is read.

    Args:
        tensors: names and tensors, on any device.
        label: where they come from, for messages.
        mapped: the file that they point into; None for tensors in memory.

    Returns:
        The stored tensors; those whose values cannot be read name the reason in their type or `reason`.
    """
    detached = [(name, t if isinstance(t, Unread | Owned) else t.detach(), _oddity(t)) for name, t in tensors.items()]
    repeats = Repeats()
    repeats.hold(tensor for _, tensor, oddity in detached if oddity is None and not isinstance(tensor, Owned))
    return [_stored(name, tensor, oddity, label, mapped, repeats) for name, tensor, oddity in detached]


def tensor_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Give the shape of any tensor. A nested one, whose rows have different lengths, counts as one row of its values.

    Args:
        tensor: of any layout, perhaps without values.
    """
    return (int(tensor.numel()),) if tensor.is_nested else tuple(map(int, tensor.shape))


def spelled_type(dtype: torch.dtype) -> str:
    """Give safetensors' spelling of a type of torch; torch's own where safetensors has none."""
    name = _plain_type(dtype)
    return _NAMES.get(name, name)


@cache
def _plain_type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stored(
    name: str, tensor: torch.Tensor, oddity: str | None, label: str, mapped: FileMap | None, repeats: Repeats
) -> StoredTensor:
    shape = _shape(tensor)
    if isinstance(tensor, Owned):
        return StoredTensor(
            name, shape, spelled_type(tensor.dtype), math.prod(shape) * tensor.element_size(), label,
            partial(_read_owned, name, tensor, label), storage=id(tensor), owner=tensor.owner,
            division=tensor.division,
        )  # fmt: skip
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=spelled_type(tensor.dtype) if oddity is None else f"{_plain_type(tensor.dtype)} ({oddity})",
        nbytes=math.prod(shape) * tensor.element_size(),
        file=label,
        read=partial(_read, name, tensor, label, mapped),
        storage=_storage(tensor) if oddity is None and tensor.numel() else None,
        reason=repeats.too_many(tensor) if oddity is None and _fits(tensor) else None,
    )


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Give the shape in values, as safetensors does: torch counts bytes where two values share one."""
    shape = tensor_shape(tensor)
    return (*shape[:-1], 2 * shape[-1]) if shape and _plain_type(tensor.dtype) == _TWO_A_BYTE else shape


def _oddity(tensor: torch.Tensor) -> str | None:
    """Say why its values cannot be read like those of an array; None where they can."""
    if isinstance(tensor, Unread):
        return tensor.oddity
    if isinstance(tensor, Owned):
        return None
    if tensor.is_nested:
        return "nested: its rows have different lengths"
    if tensor.dim() > _AXES:
        return f"{tensor.dim()} axes: at most {_AXES} can be read"
    is_special = type(tensor) is not torch.Tensor and (
        isinstance(tensor, FakeTensor) or is_traceable_wrapper_subclass(tensor)
    )
    if is_special or is_functorch_wrapped_tensor(tensor):
        return f"{type(tensor).__name__}: its values lie elsewhere"
    if tensor.device.type == "meta":
        return "meta: it has no values"
    if tensor.is_quantized:
        return "quantized"
    return None if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")


def _fits(tensor: torch.Tensor) -> bool:
    """Tell whether the storage is as long as the view's strides reach."""
    if tensor.is_contiguous():
        n = tensor.numel()
    else:
        n = 1 + sum([(size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)])
    last = tensor.storage_offset() + n
    return tensor.numel() == 0 or last * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _storage(tensor: torch.Tensor) -> Hashable:
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _read_owned(name: str, tensor: Owned, label: str, index: int | None = None) -> RawArray:
    return _read(name, tensor.present(name, index), label, None)


def _read(name: str, tensor: torch.Tensor, label: str, mapped: FileMap | None, index: int | None = None) -> RawArray:
    """Copy the values: the tensor may be a live parameter or a map of a file."""
    if not _fits(tensor):
        raise SourceError(f"'{label}' stores fewer values for '{name}' than its shape {tuple(tensor.shape)} says")
    values = tensor if index is None else tensor[index]
    values = values if mapped is None else mapped.fetch(values, name, label)
    if values.dtype.is_floating_point and values.element_size() == 1:
        values = values.view(torch.uint8)  # numpy has no such types: codes travel as bytes
    values = values.to("cpu", copy=True, memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    return values.numpy()
