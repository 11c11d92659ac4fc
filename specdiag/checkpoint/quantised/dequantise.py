"""Which stored types hold weights, and why the others are left out: raw codes are never analysed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from specdiag.checkpoint.tensors import FLOAT_TYPES, StoredTensor

_PACKED_LEAVES = frozenset({"qweight", "qzeros", "weight_packed", "W_q", "blocks"})
_PACKING = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})  # 64 bits hold indices
_SCALE_WORDS = (
    "scale",
    "absmax",
    "quant_map",
    "zero",
    "SCB",
    "qzeros",
    "quant_state",
    "input_amax",
    "weight_amax",
)


def dequantise(tensors: Sequence[StoredTensor], config: Mapping[str, Any]) -> tuple[list[StoredTensor], list[str]]:
    """Put weights in the place of their codes, and the reason to each tensor whose type keeps it from being analysed.

    Args:
        tensors: everything that the checkpoint stores.
        config: config.json; a `quantization_config` in it marks integer tensors as weights.

    Returns:
        The tensors in stored order and notes.
    """
    reasons = _reasons(tensors, config)
    return [replace(t, reason=reasons.get(t.name, t.reason)) for t in tensors], []


def _reasons(tensors: Sequence[StoredTensor], config: Mapping[str, Any]) -> dict[str, str]:
    names = {tensor.name for tensor in tensors}
    quantised = "quantization_config" in config
    codes = {t.name for t in tensors if t.values_dtype not in FLOAT_TYPES and _holds_codes(t, names, quantised)}
    owners = {owner for name in codes for owner in (name, _parent(name))} - {""}
    reasons = ((tensor.name, _reason(tensor, codes, owners)) for tensor in tensors)
    return {name: reason for name, reason in reasons if reason is not None}


def _reason(tensor: StoredTensor, codes: set[str], owners: set[str]) -> str | None:
    if _is_scale(tensor.name) and _parent(tensor.name) in owners:
        return "scale of a quantised tensor"
    if tensor.values_dtype in FLOAT_TYPES:
        return None
    if tensor.dtype.startswith("F"):
        return f"unsupported dtype {tensor.dtype}: its codes mean nothing without their scales"
    if tensor.name in codes:
        return f"quantised or packed weights ({tensor.dtype}), not supported yet"
    if tensor.dtype.startswith(("I", "U")):
        return "integer buffer"
    return "boolean buffer" if tensor.dtype == "BOOL" else f"unsupported dtype {tensor.dtype}"


def _holds_codes(tensor: StoredTensor, names: set[str], quantised: bool) -> bool:
    if tensor.dtype.startswith("F"):
        return True  # F8, F6, F4: meaningless without the scales that belong to them
    if tensor.dtype not in _PACKING or len(tensor.shape) < 2:
        return False
    leaf = tensor.name.rpartition(".")[2]
    if "weight" in leaf or leaf in _PACKED_LEAVES or leaf.endswith(("_blocks", "_scales")):
        return True
    parent = _parent(tensor.name)
    return quantised or any(f"{parent}.{word}" in names for word in ("scale", "scales", "weight_scale"))


def _is_scale(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    return any(word in leaf for word in _SCALE_WORDS)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
