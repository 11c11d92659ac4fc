"""fp8 and int8: one code a value, and scales on a grid over the matrix.

Tensor names of fp8: `weight_scale_inv` of DeepSeek-V3 and transformers' fine-grained FP8, which multiplies in spite of
its name; `weight_scale` of compressed-tensors, FBGEMM, ModelOpt and Quark; `scale_weight` of ComfyUI; `qscale_weight`
of Mistral's own files and `scale` of DeepSeek's; `NAME_scale_inv` and `NAME_scale` of stacked experts. Scales may be
floats or powers of two (E8M0, also stored as U8: MXFP8). int8: `weight_scale` with an optional `weight_zero_point`
(compressed-tensors), `SCB` (bitsandbytes, W = CB SCB / 127), `qweight` and `scale`. Compared with what
compressed-tensors 0.20, transformers 5.23 and bitsandbytes 0.50 dequantise.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.quantised.bundle import Bundle, shown, split, weight_name
from specdiag.checkpoint.quantised.codes import FLOAT8
from specdiag.checkpoint.quantised.grid import Grid, block_size, fit, item_shape, matrix_shape
from specdiag.checkpoint.quantised.weight import Decode, NotUnderstood, Weight, array, floats
from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES, RawArray

_EPS = {"F8_E4M3": 0.125, "F8_E4M3FNUZ": 0.125, "F8_E5M2": 0.25, "F8_E5M2FNUZ": 0.25}
_POWERS = ("U8", "F8_E8M0")
_MX_GROUP = Grid(1, 32)
_MX_ROUNDING = Rounding(relative=0.03)
"""mxfp8: 0.026 where powers of two are rounded up, to 0.04 where they are rounded down and the largest are cut."""

_ROW_FORMAT = 0


def find_float8(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the scales of a tensor of fp8 codes. Those of a plain cast have none.

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor.

    Raises:
        NotUnderstood: its scales are missing, or do not fit.
    """
    if codes.dtype not in _EPS:
        return None
    rounding, stacked = Rounding(eps=_EPS[codes.dtype]), len(codes.shape) == 3
    scale = find_scale(codes.name, bundle, *_POWERS)
    if scale is None:
        _require_plain(codes, bundle)
        decode = partial(_decode_float8, codes, None, None)
        return Weight(codes.name, codes.shape, codes.dtype, (codes,), decode, rounding, stacked, scaled=False)
    grid = _grid(codes, scale, bundle)
    if scale.dtype == "U8" and grid.rows != 1:
        raise NotUnderstood(f"its scales are whole numbers of shape {shown(scale.shape)}, not exponents by groups")
    if scale.dtype in _POWERS and grid == _MX_GROUP:
        rounding = _MX_ROUNDING
    decode = partial(_decode_float8, codes, scale, grid)
    return Weight(codes.name, codes.shape, codes.dtype, (codes, scale), decode, rounding, stacked)


def find_int8(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the scales of a tensor of int8 codes.

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor, also for int8 values without scales.

    Raises:
        NotUnderstood: its scales do not fit, or belong to a layout whose order of values is not known.
    """
    parent, leaf = split(codes.name)
    if codes.dtype != "I8" or len(codes.shape) < 2 or "qzeros" in bundle.leaves[parent]:
        return None
    if leaf == "weight" and "weight_scales" in bundle.leaves[parent]:
        raise NotUnderstood("EETQ: their order is that of a kernel")
    quantiles = bundle.floats(f"{parent}.SCB") if leaf == "weight" else None
    if quantiles is not None:
        return _bitsandbytes(codes, quantiles, bundle)
    if leaf == "qweight":
        name, scale = weight_name(parent), bundle.floats(f"{parent}.scale", f"{parent}.scales")
    else:
        name, scale = codes.name, find_scale(codes.name, bundle)
    if scale is None:
        return None
    grid = _grid(codes, scale, bundle)
    _require_eight_bits(codes, grid, bundle)
    zero = bundle.tensors.get(f"{codes.name}_zero_point")
    if zero is not None and (zero.dtype != "I8" or zero.shape != scale.shape):
        raise NotUnderstood(f"its zero points are {zero.dtype} of shape {shown(zero.shape)}")
    more = (scale,) if zero is None else (scale, zero)
    return _int8(name, codes, more, partial(_decode_int8, scale, grid, 1.0), grid)


def find_scale(name: str, bundle: Bundle, *more: str) -> StoredTensor | None:
    """Find the scale of codes by any of the names in use.

    Args:
        name: of the weight.
        bundle: all tensors and the configuration.
        more: types that scales may have beside floats.

    Returns:
        The scale, floats before other types; None without one.
    """
    parent, leaf = split(name)
    names = [f"{name}_scale_inv", f"{name}_scale"]
    if leaf == "weight":
        names += [f"{parent}.{word}" if parent else word for word in ("scale_weight", "qscale_weight", "scale")]
    found = [bundle.tensors[name] for name in names if name in bundle.tensors]
    floating = (tensor for tensor in found if tensor.dtype in FLOAT_TYPES)
    return next(floating, None) or next((tensor for tensor in found if tensor.dtype in more), None)


def _require_plain(codes: StoredTensor, bundle: Bundle) -> None:
    """Check that nothing hints at scales: only a plain cast writes fp8 without them."""
    parent, leaf = split(codes.name)
    words = (word for word in bundle.leaves[parent] if leaf == "weight" or word.startswith(leaf))
    unknown_scales = {word for word in words if "scale" in word}
    if unknown_scales:
        raise NotUnderstood(f"nothing is known of {', '.join(sorted(unknown_scales))}")
    if bundle.settings:
        raise NotUnderstood(f"{codes.name}_scale is missing, and the configuration says that the model is quantised")


def _require_eight_bits(codes: StoredTensor, grid: Grid, bundle: Bundle) -> None:
    """Check that each int8 holds one code. Some files keep two codes of 4 bits in it.

    These have a scale for each group, or their configuration says so.
    """
    if bundle.bits and 8 not in bundle.bits:
        raise NotUnderstood(f"the configuration says {min(bundle.bits)} bits")
    if not bundle.bits and grid.cols < matrix_shape(codes.shape[len(codes.shape) == 3 :])[1]:
        raise NotUnderstood("scales by groups, and no configuration says that these are 8 bits")


def _grid(codes: StoredTensor, scale: StoredTensor, bundle: Bundle) -> Grid:
    shape, scales = codes.shape, scale.shape
    if len(shape) == 3:
        shape, scales = shape[1:], item_shape(shape, scales)
    grid = fit(matrix_shape(shape), scales, block_size(bundle.settings.get("weight_block_size")))
    if grid is None:
        raise NotUnderstood(
            f"no size of blocks is known with which scales of shape {shown(scale.shape)} fit {shown(codes.shape)} codes"
        )
    return grid


def _decode_float8(
    codes: StoredTensor, scale: StoredTensor | None, grid: Grid | None, raw: RawArray, *scales: RawArray
) -> NDArray[np.float32]:
    values = FLOAT8[codes.dtype][raw]
    if scale is not None and grid is not None:
        grid.apply(np.multiply, values.reshape(matrix_shape(values.shape)), floats(scales[0], scale))
    return values


def _decode_int8(
    scale: StoredTensor, grid: Grid, divisor: float, raw: RawArray, scales: RawArray, *zeros: RawArray
) -> NDArray[np.float32]:
    values = raw.astype(np.float32)
    matrix = values.reshape(matrix_shape(values.shape))
    for zero in zeros:
        grid.apply(np.subtract, matrix, zero.astype(np.float32))
    grid.apply(np.multiply, matrix, floats(scales, scale) / np.float32(divisor))
    return values


def _int8(
    name: str,
    codes: StoredTensor,
    more: tuple[StoredTensor, ...],
    decode: Decode,
    grid: Grid,
) -> Weight:
    group = grid.cols if grid.rows == 1 else grid.rows * grid.cols
    rounding = Rounding(group=group, levels=255, symmetric=len(more) == 1)
    return Weight(name, codes.shape, "int8", (codes, *more), decode, rounding, stacked=len(codes.shape) == 3)


def _bitsandbytes(codes: StoredTensor, quantiles: StoredTensor, bundle: Bundle) -> Weight:
    parent, _ = split(codes.name)
    order = bundle.tensors.get(f"{parent}.weight_format")
    if order is not None and (order.dtype != "U8" or order.nbytes != 1 or array(order).reshape(-1)[0] != _ROW_FORMAT):
        raise NotUnderstood("bitsandbytes int8 in the order of a kernel")
    grid = fit(matrix_shape(codes.shape), quantiles.shape, None)
    if grid is None or grid.rows != 1 or len(codes.shape) != 2:
        raise NotUnderstood(f"SCB has shape {shown(quantiles.shape)} for {shown(codes.shape)} codes")
    decode = partial(_decode_int8, quantiles, grid, 127.0)
    return _int8(codes.name, codes, (quantiles,), decode, grid)
