"""mxfp4 and nvfp4: two E2M1 codes a byte, the low half first, and a scale for each group of inputs.

mxfp4 has powers of two for each 32 inputs: gpt-oss (`NAME_blocks` [experts, out, groups, 16] and `NAME_scales`, which
transformers' `convert_moe_packed_tensors` turns into a parameter [experts, in, out]), compressed-tensors
(`weight_packed`, `weight_scale`), Quark and DeepSeek-V4 (`weight` as U8 or I8). nvfp4 has E4M3 scales for each 16 and
one more for all: ModelOpt's `weight_scale_2` multiplies, compressed-tensors' `weight_global_scale` divides. Compared
with what transformers 5.23 and compressed-tensors 0.20 unpack.
"""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.quantised.bundle import Bundle, shown, split, weight_name
from specdiag.checkpoint.quantised.codes import FLOAT4, apply_groups, pairs, unpack_pairs
from specdiag.checkpoint.quantised.scaled import find_scale
from specdiag.checkpoint.quantised.weight import NotUnderstood, Weight, floats
from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.spectra.float_types import RawArray

_MX_GROUP, _NV_GROUP = 32, 16
_POWERS = ("U8", "F8_E8M0")
_PAIRS = pairs(FLOAT4)
MX_ROUNDING = Rounding(relative=0.12)
NV_ROUNDING = Rounding(relative=0.092)


def find_float4(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the scales of a tensor of mxfp4 or nvfp4 codes.

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor.

    Raises:
        NotUnderstood: its scales are missing, do not fit, or lie in another order.
    """
    parent, leaf = split(codes.name)
    if leaf.endswith("_blocks") and codes.dtype == "U8":
        return _gpt_oss(codes, bundle)
    packed = leaf == "weight_packed" and codes.dtype in ("U8", "F4")
    if not (packed or codes.dtype in ("U8", "I8", "F4")) or len(codes.shape) not in (2, 3):
        return None
    name = weight_name(parent) if packed else codes.name
    scale = bundle.integers(f"{name}_scale", *_POWERS, "F8_E4M3") or find_scale(name, bundle, *_POWERS)
    if scale is None or (scale.dtype not in (*_POWERS, "F8_E4M3") and not _deepseek(codes, bundle)):
        return None
    if "comfy_quant" in bundle.leaves[parent]:
        raise NotUnderstood("fp4 of ComfyUI: its scales lie in the order of a kernel")
    group = _NV_GROUP if scale.dtype == "F8_E4M3" else _MX_GROUP
    shape = codes.shape if codes.dtype == "F4" else (*codes.shape[:-1], codes.shape[-1] * 2)
    if scale.shape != (*shape[:-1], shape[-1] // group) or shape[-1] % group:
        raise NotUnderstood(f"scales of shape {shown(scale.shape)} are none for each {group} of {shown(shape)} values")
    stacked = len(shape) == 3
    if group == _MX_GROUP:
        decode = partial(_decode, scale, None, False)
        return Weight(name, shape, "mxfp4", (codes, scale), decode, MX_ROUNDING, stacked)
    divides = packed
    more = bundle.floats(f"{name}_global_scale" if divides else f"{name}_scale_2")
    if more is None or prod(more.shape) not in (1, shape[0] if stacked else 1):
        raise NotUnderstood("nvfp4 without the scale of all groups")
    decode = partial(_decode, scale, more, divides)
    return Weight(name, shape, "nvfp4", (codes, scale, more), decode, NV_ROUNDING, stacked)


def _deepseek(codes: StoredTensor, bundle: Bundle) -> bool:
    """Tell whether int8 stands for two codes, as in DeepSeek-V4, whose scales may be floats."""
    return codes.dtype == "I8" and bundle.config.get("expert_dtype") == "fp4" and ".experts." in codes.name


def _gpt_oss(codes: StoredTensor, bundle: Bundle) -> Weight:
    name = codes.name.removesuffix("_blocks")
    scale = bundle.integers(f"{name}_scales", *_POWERS)
    if scale is None or len(codes.shape) != 4 or codes.shape[3] != _MX_GROUP // 2 or codes.shape[:3] != scale.shape:
        raise NotUnderstood(f"mxfp4 blocks of shape {shown(codes.shape)} without scales that fit")
    n_experts, rows, groups, _ = codes.shape
    decode = partial(_decode_turned, scale)
    shape = (n_experts, groups * _MX_GROUP, rows)
    return Weight(name, shape, "mxfp4", (codes, scale), decode, MX_ROUNDING, stacked=True)


def _decode(
    scale: StoredTensor,
    global_tensor: StoredTensor | None,
    divides: bool,
    raw: RawArray,
    scales: RawArray,
    *global_scales: RawArray,
) -> NDArray[np.float32]:
    values = unpack_pairs(raw, _PAIRS)
    factors = floats(scales, scale)
    if global_tensor is not None:
        global_scale = floats(global_scales[0], global_tensor).reshape(-1)[0]
        factors = factors / global_scale if divides else factors * global_scale
    apply_groups(np.multiply, values, factors, values.shape[1] // factors.shape[1])
    return values


def _decode_turned(scale: StoredTensor, raw: RawArray, scales: RawArray) -> NDArray[np.float32]:
    rows, groups = scales.shape
    return np.ascontiguousarray(_decode(scale, None, False, raw.reshape(rows, groups * 16), scales).T)
