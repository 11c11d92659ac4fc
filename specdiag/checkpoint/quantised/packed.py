"""compressed-tensors' pack-quantized integers and MLX's affine ones: codes from the lowest bit on along each row.

compressed-tensors stores `weight_packed` [out, words] in I32, codes plus half their range, `weight_shape`,
`weight_scale` [out, groups], where the zero is not half the range `weight_zero_point` packed down its columns, and
`weight_g_idx` [in] where groups do not follow each other: (code - zero) scale. Codes of 3, 5, 6 or 7 bits may cross
words in its version 0.20; before, words were padded, and those files are refused by their shape. MLX stores `weight`
[out, words] in U32, `scales` and `biases` [out, groups]: code scale + bias; bits and group size only its configuration
tells apart. Compared with what compressed-tensors 0.20 and MLX 0.32 pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.quantised.bundle import Bundle, positive, shown, split
from specdiag.checkpoint.quantised.codes import FLOAT4, FLOAT8, apply_groups, pairs, unpack, unpack_pairs
from specdiag.checkpoint.quantised.float4 import MX_ROUNDING
from specdiag.checkpoint.quantised.weight import NotUnderstood, Weight, array, floats
from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_PAIRS = pairs(FLOAT4)


def find_compressed(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the scales of a tensor of pack-quantized codes (compressed-tensors).

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor.

    Raises:
        NotUnderstood: parts are missing or do not fit.
    """
    parent, leaf = split(codes.name)
    if leaf != "weight_packed" or codes.dtype != "I32":
        return None
    stem = f"{parent}.weight".lstrip(".")
    scale, shape = bundle.floats(f"{stem}_scale"), _shape(bundle.integers(f"{stem}_shape", "I64", "I32"))
    if scale is None or shape is None or shape[:-1] != codes.shape[:-1] or len(shape) not in (2, 3):
        raise NotUnderstood("pack-quantized without weight_scale, or without a weight_shape that fits")
    rows, cols = shape[-2:]
    bits = _bits(codes.shape[-1], cols, bundle)
    stacked = len(shape) == 3
    n_groups = 1 if scale.shape in ((), (1,)) else scale.shape[-1]
    expected = (*shape[:-1], n_groups)
    if scale.shape not in ((), (1,), expected) or n_groups == 0 or cols % n_groups:
        raise NotUnderstood(f"pack-quantized with scales of shape {shown(scale.shape)} for {shown(shape)} values")
    zero = bundle.tensors.get(f"{stem}_zero_point")
    packed_zeros = (*shape[:-2], -(-rows * bits // 32), n_groups)
    if zero is not None and (zero.dtype != "I32" or zero.shape != packed_zeros):
        raise NotUnderstood(f"pack-quantized with zero points {zero.dtype} of shape {shown(zero.shape)}")
    order = bundle.integers(f"{stem}_g_idx", "I32", "I64")
    if order is not None and (order.shape != (cols,) or stacked):
        raise NotUnderstood(f"pack-quantized with a g_idx of shape {shown(order.shape)}")
    optional = [part for part in (zero, order) if part is not None]
    group = cols // n_groups
    return Weight(
        name=stem,
        shape=shape,
        format=f"int{bits}",
        parts=(codes, scale, *optional),
        decode=partial(_decode_compressed, (scale, zero, order), bits, cols, group),
        rounding=Rounding(group=group, levels=2**bits, symmetric=zero is None),
        stacked=stacked,
    )


def find_mlx(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the scales of a tensor of MLX's codes, affine or mxfp4.

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor.

    Raises:
        NotUnderstood: parts are missing or do not fit, or the configuration does not say the size of a group.
    """
    parent, leaf = split(codes.name)
    if leaf != "weight" or codes.dtype != "U32" or "scales" not in bundle.leaves[parent]:
        return None
    own_settings = _mlx_settings(parent, bundle)
    bits, group = positive(own_settings.get("bits")), positive(own_settings.get("group_size"))
    if bits is None or group is None or len(codes.shape) not in (2, 3):
        raise NotUnderstood("MLX: the configuration does not say how many bits and how large a group")
    cols = codes.shape[-1] * 32 // bits
    shape, stacked = (*codes.shape[:-1], cols), len(codes.shape) == 3
    expected = (*codes.shape[:-1], cols // group)
    if own_settings.get("mode") == "mxfp4":
        powers = bundle.integers(f"{parent}.scales", "U8")
        if powers is None or bits != 4 or powers.shape != expected or cols % group:
            raise NotUnderstood("MLX mxfp4 without scales that fit")
        decode, rounding = partial(_decode_mlx_float4, group), MX_ROUNDING
        return Weight(codes.name, shape, "mxfp4", (codes, powers), decode, rounding, stacked)
    scale = bundle.floats(f"{parent}.scales")
    bias = bundle.floats(f"{parent}.biases", f"{parent}.qbiases")
    if own_settings.get("mode", "affine") != "affine" or scale is None or bias is None:
        raise NotUnderstood(f"MLX in mode {own_settings.get('mode')}, or without scales and biases")
    if bits > 8 or codes.shape[-1] * 32 % bits or cols % group or not expected == scale.shape == bias.shape:
        raise NotUnderstood(
            f"MLX: {bits} bits in groups of {group} are not {shown(codes.shape)} words with {shown(scale.shape)} scales"
        )
    return Weight(
        name=codes.name,
        shape=shape,
        format=f"mlx-int{bits}",
        parts=(codes, scale, bias),
        decode=partial(_decode_mlx, (scale, bias), bits, cols, group),
        rounding=Rounding(group=group, levels=2**bits),
        stacked=stacked,
    )


def _shape(tensor: StoredTensor | None) -> tuple[int, ...] | None:
    """Read the sizes that a small tensor of integers holds; None where they are no shape."""
    if tensor is None or tensor.shape not in ((2,), (3,)):
        return None
    sizes = tuple(int(size) for size in array(tensor))
    return sizes if min(sizes) > 0 else None


def _bits(words: int, cols: int, bundle: Bundle) -> int:
    fitting = [bits for bits in range(1, 9) if -(-cols * bits // 32) == words]
    candidates = fitting if len(fitting) == 1 else [bits for bits in fitting if bits in bundle.bits]
    if len(candidates) != 1:
        raise NotUnderstood(f"pack-quantized: {words} words for {cols} values, a number of bits that is not clear")
    return candidates[0]


def _mlx_settings(parent: str, bundle: Bundle) -> Mapping[str, object]:
    """Look up the settings of a layer: its own where it has some, else those of all."""
    section = bundle.config.get("quantization", bundle.settings)
    whole = cast("Mapping[str, object]", section) if isinstance(section, Mapping) else bundle.settings
    layer_section = whole.get(parent)
    return {**whole, **cast("Mapping[str, object]", layer_section)} if isinstance(layer_section, Mapping) else whole


def _decode_compressed(
    tensors: tuple[StoredTensor, StoredTensor | None, StoredTensor | None],
    bits: int,
    cols: int,
    group: int,
    words: RawArray,
    scales: RawArray,
    *optional: RawArray,
) -> NDArray[np.float32]:
    scale, zero, order = tensors
    values = unpack(words, bits, cols).astype(np.float32)
    factors = floats(scales, scale).reshape(-1, cols // group)
    index = None if order is None else _index(optional[-1], factors.shape[1], order)
    if zero is None:
        values -= np.float32(1 << (bits - 1))
    else:
        zeros = unpack(optional[0].T, bits, len(values)).T.astype(np.float32)
        apply_groups(np.subtract, values, zeros, group, index)
    apply_groups(np.multiply, values, np.broadcast_to(factors, (len(values), factors.shape[1])), group, index)
    return values


def _index(order: RawArray, n_groups: int, tensor: StoredTensor) -> RawArray | None:
    if order.min() == -1:  # written where groups follow each other
        return None
    if order.min() < 0 or order.max() >= n_groups:
        raise SourceError(f"'{tensor.file}' is damaged: '{tensor.name}' names groups that are not there")
    return order


def _decode_mlx(
    tensors: tuple[StoredTensor, StoredTensor],
    bits: int,
    cols: int,
    group: int,
    words: RawArray,
    scales: RawArray,
    biases: RawArray,
) -> NDArray[np.float32]:
    values = unpack(words, bits, cols).astype(np.float32)
    apply_groups(np.multiply, values, floats(scales, tensors[0]), group)
    apply_groups(np.add, values, floats(biases, tensors[1]), group)
    return values


def _decode_mlx_float4(group: int, words: RawArray, powers: RawArray) -> NDArray[np.float32]:
    values = unpack_pairs(words, _PAIRS)
    apply_groups(np.multiply, values, FLOAT8["F8_E8M0"][powers], group)
    return values
