"""Stored tensors from tensors that torch holds: a state dict, a live model, a file that torch loaded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

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

_TWO_A_BYTE = "float4_e2m1fn_x2"


def list_tensors(tensors: Mapping[str, torch.Tensor], label: str) -> list[StoredTensor]:
    """One stored tensor for each entry, in order; nothing is copied until it is read.

    Args:
        tensors: names and tensors, on any device.
        label: where they come from, for messages.
    """
    return [_stored(name, tensor.detach(), label) for name, tensor in tensors.items()]


def _stored(name: str, tensor: torch.Tensor, label: str) -> StoredTensor:
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    return StoredTensor(
        name=name,
        shape=_shape(tensor, dtype),
        dtype=_NAMES.get(dtype, dtype) if plain else f"{dtype} ({_oddity(tensor)})",
        nbytes=tensor.numel() * tensor.element_size(),
        file=label,
        read=partial(_read, name, tensor, label),
        storage=_storage(tensor) if plain and tensor.numel() else None,
    )


def _shape(tensor: torch.Tensor, dtype: str) -> tuple[int, ...]:
    """The shape that safetensors gives it: torch counts bytes where two values share one."""
    shape = tuple(tensor.shape)
    return (*shape[:-1], 2 * shape[-1]) if dtype == _TWO_A_BYTE and shape else shape


def _oddity(tensor: torch.Tensor) -> str:
    if tensor.device.type == "meta":
        return "meta: it has no values"
    return "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")


def _storage(tensor: torch.Tensor) -> Hashable:
    return (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _read(name: str, tensor: torch.Tensor, label: str, index: int | None = None) -> NDArray[Any]:
    """A copy that belongs to the caller: the tensor may be a live parameter or a map of a file."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise SourceError(f"'{label}' stores fewer values for '{name}' than its shape {tuple(tensor.shape)} says")
    values = tensor if index is None else tensor[index]
    if values.dtype.is_floating_point and values.element_size() == 1:
        values = values.view(torch.uint8)  # numpy has no such types: codes travel as bytes
    values = values.to("cpu", copy=True, memory_format=torch.contiguous_format)
    if values.dtype == torch.bfloat16:
        values = values.view(torch.uint16)
    return values.numpy()
