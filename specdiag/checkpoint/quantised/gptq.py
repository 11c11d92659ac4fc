"""GPTQ and AWQ: integers of a few bits in 32-bit words, a scale and a zero for each group of inputs.

GPTQ stores qweight [in bits / 32, out], the codes of an output one after the other down its column, qzeros
[groups, out bits / 32] likewise along rows, scales [groups, out], and g_idx [in], the group of each input. Its first
version stores zeros less one. AWQ (gemm) stores qweight [in, out / 8] and qzeros [groups, out / 8], eight codes a word
in the order 0 2 4 6 1 3 5 7. The value is (code - zero) scale in both. Read in GPTQModel 7.7 (`TorchLinear`,
`model_dequant`) and AutoAWQ 0.2.9 (`packing_utils.dequantize_gemm`), and compared with what they unpack.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.quantised.bundle import Bundle, shown, split, weight_name
from specdiag.checkpoint.quantised.codes import apply_groups, unpack
from specdiag.checkpoint.quantised.weight import NotUnderstood, Weight, floats
from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_BITS = (2, 3, 4, 8)
_AWQ_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which of the eight codes in a word is that of column 0, 1, ..."""


def find_gptq(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the scales and zeros of a tensor of GPTQ or AWQ codes.

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor.

    Raises:
        NotUnderstood: parts are missing or do not fit, or the configuration names another layout.
    """
    parent, leaf = split(codes.name)
    if leaf != "qweight" or codes.dtype != "I32" or len(codes.shape) != 2:
        return None
    scales = bundle.floats(f"{parent}.scales")
    zeros = bundle.integers(f"{parent}.qzeros", "I32")
    if scales is None or zeros is None or len(scales.shape) != 2:
        raise NotUnderstood("scales or qzeros are missing")
    if len(zeros.shape) != 2 or zeros.shape[0] != scales.shape[0]:
        raise NotUnderstood(f"qzeros of shape {shown(zeros.shape)} do not fit scales of shape {shown(scales.shape)}")
    if codes.shape[1] == scales.shape[1]:
        return _gptq(weight_name(parent), codes, zeros, scales, bundle.integers(f"{parent}.g_idx", "I32"), bundle)
    if codes.shape[1] * 8 == scales.shape[1]:
        return _awq(weight_name(parent), codes, zeros, scales, bundle)
    raise NotUnderstood(f"qweight of shape {shown(codes.shape)} does not fit scales of shape {shown(scales.shape)}")


def _gptq(
    name: str,
    codes: StoredTensor,
    zeros: StoredTensor,
    scales: StoredTensor,
    order: StoredTensor | None,
    bundle: Bundle,
) -> Weight:
    layout = _layout(bundle)
    if layout not in ("gptq", "gptq_v2"):
        raise NotUnderstood(f"GPTQ in the layout {layout!r}")
    groups, rows = scales.shape
    fitting = [b for b in _BITS if zeros.shape[1] == -(-rows * b // 32)]
    candidates = fitting if len(fitting) == 1 else [b for b in fitting if b == bundle.number("bits")]
    if len(candidates) != 1:
        raise NotUnderstood(f"GPTQ with {bundle.settings.get('bits', 'an unknown number of')} bits")
    bits = candidates[0]
    cols = codes.shape[0] * 32 // bits if order is None else order.shape[0] if len(order.shape) == 1 else 0
    group = _group(cols, groups, bundle)
    if codes.shape[0] != -(-cols * bits // 32) or group is None:
        raise NotUnderstood(
            f"GPTQ with qweight of shape {shown(codes.shape)} and {groups} groups of scales at {bits} bits"
        )
    more = () if order is None else (order,)
    return Weight(
        name=name,
        shape=(rows, cols),
        format=f"gptq-int{bits}",
        parts=(codes, zeros, scales, *more),
        decode=partial(_decode_gptq, scales, bits, (rows, cols), group, layout == "gptq"),
        rounding=Rounding(group=group, levels=2**bits, symmetric=bundle.settings.get("sym") is True),
    )


def _awq(name: str, codes: StoredTensor, zeros: StoredTensor, scales: StoredTensor, bundle: Bundle) -> Weight:
    version = str(bundle.settings.get("version") or "gemm").lower()
    if version != "gemm" or bundle.number("bits") not in (4, None):
        raise NotUnderstood(f"AWQ in the layout {version!r} with {bundle.settings.get('bits')} bits")
    cols, (groups, rows) = codes.shape[0], scales.shape
    group = _group(cols, groups, bundle)
    if group is None or zeros.shape[1] * 8 != rows:
        raise NotUnderstood(f"AWQ with qweight of shape {shown(codes.shape)} and scales of {shown(scales.shape)}")
    return Weight(
        name=name,
        shape=(rows, cols),
        format="awq-int4",
        parts=(codes, zeros, scales),
        decode=partial(_decode_awq, scales, group),
        rounding=Rounding(group=group, levels=16),
    )


def _layout(bundle: Bundle) -> str:
    """Read the `checkpoint_format`, which AutoRound writes at the end of its `packing_format`."""
    packing = str(bundle.settings.get("packing_format") or "").rpartition(":")[2]
    if packing:
        return "gptq" if packing in ("auto_gptq", "exllamav2", "auto_round") else packing
    return str(bundle.settings.get("checkpoint_format") or "gptq")


def _group(cols: int, groups: int, bundle: Bundle) -> int | None:
    """Compute the inputs of a group: as configured where that fits, or the whole number that gives so many groups."""
    stated = bundle.number("group_size")
    if stated is not None and -(-cols // stated) == groups:
        return min(stated, cols)
    return cols // groups if cols > 0 and groups > 0 and cols % groups == 0 else None


def _decode_gptq(
    scales: StoredTensor,
    bits: int,
    shape: tuple[int, int],
    group: int,
    less_one: bool,
    words: RawArray,
    packed_zeros: RawArray,
    factors: RawArray,
    *order: RawArray,
) -> NDArray[np.float32]:
    rows, cols = shape
    zeros = unpack(packed_zeros, bits, rows)
    if less_one:
        zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
    values = unpack(words.T, bits, cols).astype(np.float32)
    index = _index(order[0], group, len(factors), scales) if order else None
    apply_groups(np.subtract, values, _columns(zeros), group, index)
    apply_groups(np.multiply, values, _columns(floats(factors, scales)), group, index)
    return values


def _index(order: RawArray, group: int, groups: int, scales: StoredTensor) -> RawArray | None:
    """Give the group of each input; None where groups follow each other."""
    if order.min() < 0 or order.max() >= groups:
        raise SourceError(f"'{scales.file}' is damaged: g_idx beside '{scales.name}' names groups that are not there")
    return None if np.array_equal(order, np.arange(len(order)) // group) else order


def _decode_awq(
    scales: StoredTensor, group: int, words: RawArray, packed_zeros: RawArray, factors: RawArray
) -> NDArray[np.float32]:
    values = np.ascontiguousarray(_unpack_awq(words).T).astype(np.float32)
    apply_groups(np.subtract, values, _columns(_unpack_awq(packed_zeros)), group)
    apply_groups(np.multiply, values, _columns(floats(factors, scales)), group)
    return values


def _unpack_awq(words: RawArray) -> NDArray[np.uint8]:
    codes = unpack(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
    return codes[:, :, list(_AWQ_COLUMN)].reshape(len(words), -1)


def _columns(by_group: RawArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(by_group.T, np.float32)
