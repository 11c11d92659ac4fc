"""bitsandbytes 4-bit, nf4 and fp4: two codes a byte, the high half first, and an absolute maximum for each block.

Beside `NAME.weight` [bytes, 1] lie `.absmax`, `.quant_map`, the 16 values of the codes, and `.quant_state
.bitsandbytes__nf4`, the shape and the size of a block as JSON in bytes. With nested quantisation absmax is itself codes
of 8 bits: nested_quant_map[code] nested_absmax + nested_offset. The bytes may be kept in any type, bf16 for FSDP.
Compared with what bitsandbytes 0.50 dequantises (`functional.QuantState`, `dequantize_4bit`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import cast

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.quantised.bundle import Bundle, positive, shown
from specdiag.checkpoint.quantised.codes import pairs, unpack_pairs
from specdiag.checkpoint.quantised.weight import NotUnderstood, Weight, array, floats
from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.files import Table
from specdiag.spectra.float_types import RawArray

_STATE = "quant_state.bitsandbytes__"
_LARGEST_STATE = 1 << 16
ROUNDINGS = {"nf4": Rounding(relative=0.095), "fp4": Rounding(relative=0.13)}


def find_bitsandbytes(codes: StoredTensor, bundle: Bundle) -> Weight | None:
    """Find the quantisation state of a tensor of 4-bit codes (bitsandbytes).

    Args:
        codes: a tensor that may hold the codes of a weight.
        bundle: all tensors and the configuration.

    Returns:
        The weight; None for any other tensor.

    Raises:
        NotUnderstood: parts are missing, damaged or do not fit.
    """
    name = codes.name
    if name not in bundle.leaves and f"{name}.quant_state" not in bundle.leaves:
        return None
    kind = next((k for k in ROUNDINGS if f"{name}.{_STATE}{k}" in bundle.tensors), None)
    if kind is None:
        if f"{name}.quant_map" in bundle.tensors:
            raise NotUnderstood("bitsandbytes 4-bit without its quant_state")
        return None
    state = _state(bundle.tensors[f"{name}.{_STATE}{kind}"])
    shape, block = _shape(state.get("shape")), positive(state.get("blocksize"))
    values = bundle.floats(f"{name}.quant_map")
    absmax = bundle.tensors.get(f"{name}.absmax")
    if shape is None or block is None or values is None or absmax is None or values.shape != (16,):
        raise NotUnderstood(f"{kind} without shape, blocksize, quant_map or absmax")
    n = prod(shape)
    if codes.nbytes != -(-n // 2) or absmax.shape != (-(-n // block),):
        raise NotUnderstood(f"{kind}: {codes.nbytes} bytes and {shown(absmax.shape)} maxima for {shown(shape)} values")
    nested = () if absmax.dtype in ("F32", "F16", "BF16") else _nested(name, absmax, state, bundle)
    offset, nested_block = _number(state.get("nested_offset")), positive(state.get("nested_blocksize"))
    if nested and (offset is None or nested_block is None):
        raise NotUnderstood(f"{kind} whose maxima are codes without offset or blocksize")
    if nested and nested[1].shape != (-(-prod(absmax.shape) // cast("int", nested_block)),):
        raise NotUnderstood(f"{kind} with {shown(nested[1].shape)} maxima of {shown(absmax.shape)} maxima")
    return Weight(
        name=name,
        shape=shape,
        format=kind,
        parts=(codes, values, absmax, *nested),
        decode=partial(_decode, shape, block, (nested_block, offset), (values, absmax, *nested)),
        rounding=ROUNDINGS[kind],
    )


def _state(tensor: StoredTensor) -> Mapping[str, object]:
    if tensor.dtype != "U8" or not 0 < tensor.nbytes <= _LARGEST_STATE:
        raise NotUnderstood("bitsandbytes 4-bit with a damaged quant_state")
    try:
        state = json.loads(array(tensor).tobytes())
    except (ValueError, RecursionError):
        raise NotUnderstood("bitsandbytes 4-bit with a damaged quant_state") from None
    if not isinstance(state, dict):
        raise NotUnderstood("bitsandbytes 4-bit with a damaged quant_state")
    return cast("Table", state)


def _shape(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not value or len(value) > 8:
        return None
    sizes = [positive(size) for size in cast("list[object]", value)]
    return None if None in sizes else tuple(size for size in sizes if size is not None)


def _number(value: object) -> float | None:
    """Give a number that float32 can hold; None for anything else."""
    return float(value) if isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max) else None


def _nested(
    name: str, absmax: StoredTensor, state: Mapping[str, object], bundle: Bundle
) -> tuple[StoredTensor, StoredTensor]:
    values, maxima = bundle.floats(f"{name}.nested_quant_map"), bundle.floats(f"{name}.nested_absmax")
    if absmax.dtype != "U8" or values is None or maxima is None or values.shape != (256,):
        raise NotUnderstood(f"bitsandbytes {state.get('quant_type')} whose maxima are codes without a map")
    return values, maxima


def _decode(
    shape: tuple[int, ...],
    block: int,
    nesting: tuple[int | None, float | None],
    tensors: tuple[StoredTensor, ...],
    raw: RawArray,
    *parts: RawArray,
) -> NDArray[np.float32]:
    table = floats(parts[0], tensors[0])
    if len(parts) == 2:
        absmax = floats(parts[1], tensors[1])
    else:
        nested_block, offset = nesting
        assert nested_block is not None
        assert offset is not None
        absmax = floats(parts[2], tensors[2])[parts[1]]
        _multiply_blocks(absmax, floats(parts[3], tensors[3]), nested_block)
        absmax += np.float32(offset)
    n = prod(shape)
    values = unpack_pairs(raw.reshape(-1), pairs(table, high_first=True))[:n]
    _multiply_blocks(values, absmax, block)
    return values.reshape(shape)


def _multiply_blocks(values: NDArray[np.float32], factors: NDArray[np.float32], block: int) -> None:
    """Multiply each `block` values with their factor in place; the last block may be cut."""
    whole = len(values) // block
    blocks = values[: whole * block].reshape(whole, block)
    blocks *= factors[:whole, None]
    values[whole * block :] *= factors[whole:]
