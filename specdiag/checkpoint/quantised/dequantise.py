"""Weights in the place of their codes, and why other tensors of no float type are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from msgspec.structs import replace

from specdiag.architecture.names import numbered
from specdiag.architecture.rules import find_skip
from specdiag.checkpoint.quantised.bitsandbytes import find_bitsandbytes
from specdiag.checkpoint.quantised.bundle import Bundle, split
from specdiag.checkpoint.quantised.float4 import find_float4
from specdiag.checkpoint.quantised.gptq import find_gptq
from specdiag.checkpoint.quantised.packed import find_compressed, find_mlx
from specdiag.checkpoint.quantised.scaled import find_float8, find_int8
from specdiag.checkpoint.quantised.unsupported import belongs, foreign_method, foreign_modules
from specdiag.checkpoint.quantised.weight import NotUnderstood, Weight
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.text.counts import counted

_FINDERS: tuple[Callable[[StoredTensor, Bundle], Weight | None], ...] = (
    find_bitsandbytes,
    find_float4,
    find_float8,
    find_int8,
    find_gptq,
    find_compressed,
    find_mlx,
)
SCALE = "scale of a quantised tensor"
"""Why a tensor is left out that only scales codes."""
_PACKED_LEAVES = frozenset({"qweight", "qzeros", "weight_packed", "W_q", "blocks"})
_PACKING = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})  # integers of 64 bits are indices, no codes
_SCALE_WORDS = (
    "scale",
    "absmax",
    "quant_map",
    "zero",
    "SCB",
    "quant_state",
    "g_idx",
    "biases",
    "weight_shape",
    "weight_format",
    "input_amax",
    "weight_amax",
)


def dequantise(tensors: Sequence[StoredTensor], config: Mapping[str, object]) -> tuple[list[StoredTensor], list[str]]:
    """Put weights in the place of their codes, and give tensors of no float type the reason why they are left out.

    Small tensors that hold shapes are read; no codes and no scales are.

    Args:
        tensors: everything that the checkpoint stores.
        config: config.json; its `quantization_config` says what shapes alone leave open.

    Returns:
        The tensors in stored order; a note for each format that was dequantised.

    Raises:
        SourceError: a file cannot be read.
    """
    if all(t.values_dtype in FLOAT_TYPES for t in tensors):
        return list(tensors), []
    bundle = Bundle.of(tensors, config)
    weights, refused = _find(tensors, bundle)
    parts = {part.name for weight in weights.values() for part in weight.parts}
    reasons = _reasons(tensors, bundle, weights.keys() | refused.keys())
    reasons |= dict.fromkeys(parts - refused.keys(), SCALE) | refused
    readable = [
        weights[t.name].tensor() if t.name in weights else replace(t, reason=reasons.get(t.name, t.reason))
        for t in tensors
    ]
    return readable, _notes(weights)


def _find(tensors: Sequence[StoredTensor], bundle: Bundle) -> tuple[dict[str, Weight], dict[str, str]]:
    """Find the weights, by the names of their codes, and the reasons why other codes are refused."""
    weights: dict[str, Weight] = {}
    refused: dict[str, str] = {}
    foreign, method = foreign_modules(bundle), foreign_method(bundle)
    names = set(bundle.tensors)
    for tensor in tensors:
        family = belongs(tensor.name, foreign) if foreign else None
        if family is not None:
            is_codes = split(tensor.name)[1] == family.codes
            refused[tensor.name] = _refusal(tensor, f"{family.name} is not read") if is_codes else SCALE
            continue
        if tensor.values_dtype not in FLOAT_TYPES and _is_scale(tensor.name):
            continue
        try:
            weight = _weight(tensor, bundle, method)
            if weight is None:
                continue
            if weight.name != tensor.name and weight.name in names:
                raise NotUnderstood(f"another tensor has the name {weight.name}")
        except NotUnderstood as reason:
            refused[tensor.name] = _refusal(tensor, str(reason))
            continue
        names.add(weight.name)
        weights[tensor.name] = weight
    return weights, refused


def _weight(tensor: StoredTensor, bundle: Bundle, method: str | None) -> Weight | None:
    if tensor.values_dtype in FLOAT_TYPES:
        return find_bitsandbytes(tensor, bundle)
    if method is not None and tensor.dtype in _PACKING and len(tensor.shape) > 1:
        raise NotUnderstood(f"{method} is not read")
    weight = next((match for find in _FINDERS if (match := find(tensor, bundle)) is not None), None)
    if weight is not None and 0 in (*weight.shape, *(size for part in weight.parts for size in part.shape)):
        raise NotUnderstood("empty: a dimension is 0")
    return weight


def _refusal(tensor: StoredTensor, why: str) -> str:
    return f"quantised or packed weights ({tensor.dtype}): {why}"


def _notes(weights: Mapping[str, Weight]) -> list[str]:
    scaled = Counter(weight.format for weight in weights.values() if weight.scaled)
    plain = Counter(weight.format for weight in weights.values() if not weight.scaled)
    notes = [f"Dequantised {counted(n, 'tensor')} from {kind}." for kind, n in scaled.items()]
    return notes + [
        f"Read {counted(n, 'tensor')} of {kind} as plain numbers: nothing in the checkpoint scales them."
        for kind, n in plain.items()
    ]


def _reasons(tensors: Sequence[StoredTensor], bundle: Bundle, known_codes: set[str]) -> dict[str, str]:
    """Say why tensors that are no codes of a known format are left out."""
    codes = known_codes | {t.name for t in tensors if t.values_dtype not in FLOAT_TYPES and _holds_codes(t, bundle)}
    owners = {owner for name in codes for owner in (name, split(name)[0])} - {""}
    reasons = ((tensor.name, _reason(tensor, codes, owners)) for tensor in tensors)
    return {name: reason for name, reason in reasons if reason is not None}


def _reason(tensor: StoredTensor, codes: set[str], owners: set[str]) -> str | None:
    if _is_scale(tensor.name) and _owner(tensor.name) in owners:
        return SCALE
    if tensor.values_dtype in FLOAT_TYPES:
        return None
    if tensor.dtype.startswith("F"):
        return f"unsupported dtype {tensor.dtype}: its codes mean nothing without their scales"
    if tensor.name in codes:
        return _refusal(tensor, "no scales that are understood belong to them")
    if tensor.dtype.startswith(("I", "U")):
        return "integer buffer"
    if tensor.dtype == "BOOL":
        return "boolean buffer"
    return find_skip(numbered(tensor.name)) or f"unsupported dtype {tensor.dtype}"  # complex rotary tables


def _holds_codes(tensor: StoredTensor, bundle: Bundle) -> bool:
    if tensor.dtype.startswith("F"):
        return True  # F8, F6, F4: meaningless without the scales that belong to them
    if tensor.dtype not in _PACKING or len(tensor.shape) < 2:
        return False
    parent, leaf = split(tensor.name)
    if "weight" in leaf or leaf in _PACKED_LEAVES or leaf.endswith(("_blocks", "_scales")):
        return True
    return bool(bundle.settings) or not bundle.leaves[parent].isdisjoint({"scale", "scales", "weight_scale"})


def _is_scale(name: str) -> bool:
    parent, leaf = split(name)
    return _names_scale(leaf) or parent.endswith(".quant_state")


@lru_cache(4096)  # modules repeat a few names
def _names_scale(leaf: str) -> bool:
    return any(word in leaf for word in _SCALE_WORDS)


def _owner(name: str) -> str:
    return split(name)[0].removesuffix(".quant_state")
