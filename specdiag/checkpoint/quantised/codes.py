"""Codes of few bits: tables of what they stand for, and how they lie in bytes and words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.float_types import RawArray


def _float8(exponent_bits: int, bias: int, nan: tuple[int, ...], infinity: tuple[int, ...] = ()) -> NDArray[np.float32]:
    """Decode all 256 codes of an 8-bit float with a sign."""
    codes = np.arange(256)
    mantissa_bits = 7 - exponent_bits
    exponent = (codes & 0x7F) >> mantissa_bits
    mantissa = codes & ((1 << mantissa_bits) - 1)
    significand = mantissa + np.where(exponent > 0, 1 << mantissa_bits, 0)
    values = np.ldexp(significand.astype(np.float32), np.maximum(exponent, 1) - bias - mantissa_bits)
    values[codes > 127] *= -1
    values[list(infinity)] = [np.inf, -np.inf][: len(infinity)]
    values[list(nan)] = np.nan
    return values.astype(np.float32)


def _powers_of_two() -> NDArray[np.float32]:
    return np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.nan).astype(np.float32)


FLOAT8: dict[str, NDArray[np.float32]] = {
    "F8_E4M3": _float8(4, 7, nan=(0x7F, 0xFF)),
    "F8_E5M2": _float8(5, 15, nan=(0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), infinity=(0x7C, 0xFC)),
    "F8_E4M3FNUZ": _float8(4, 8, nan=(0x80,)),
    "F8_E5M2FNUZ": _float8(5, 16, nan=(0x80,)),
    "F8_E8M0": _powers_of_two(),
}
"""The values of 8-bit floats by code: OCP 8-bit floating point and microscaling (MX) specifications; the FNUZ types
have one more in the exponent's bias, one NaN and no infinity. Checked against torch's types."""

_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
FLOAT4: NDArray[np.float32] = np.concatenate([_E2M1, -_E2M1])
"""The values of E2M1 by code."""


def pairs(table: NDArray[np.float32], *, high_first: bool = False) -> NDArray[np.uint64]:
    """Make the table that decodes a byte of two 4-bit codes at once.

    Args:
        table: the 16 values by code, float32.
        high_first: whether the high half of a byte is the first code.

    Returns:
        Shape [256]; each entry is the 8 bytes of two float32.
    """
    low, high = table[np.arange(256) & 15], table[np.arange(256) >> 4]
    return np.stack([high, low] if high_first else [low, high], axis=1).view(np.uint64).reshape(256)


def unpack_pairs(packed: RawArray, table: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Decode bytes of two 4-bit codes each.

    Args:
        packed: integers of any size.
        table: that of `pairs`.

    Returns:
        Float32, two values a byte along the last axis.
    """
    return table[np.ascontiguousarray(packed).view(np.uint8)].view(np.float32)


def unpack(packed: RawArray, bits: int, n: int) -> NDArray[np.uint8]:
    """Unpack codes that lie one after the other from the lowest bit on, along the last axis.

    Args:
        packed: integers [rows, words], of any size; the bits of a row run through its words in order.
        bits: of a code, 1 to 8.
        n: number of codes in a row; the rest is padding.

    Returns:
        Shape [rows, n].
    """
    stored = np.ascontiguousarray(packed)
    octets = stored.astype(stored.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if bits == 8:
        return octets[:, :n]
    if bits == 4:
        return np.stack([octets & np.uint8(15), octets >> np.uint8(4)], axis=2).reshape(len(octets), -1)[:, :n]
    begin = np.arange(n) * bits
    octets = np.pad(octets, ((0, 0), (0, 1)))
    first = octets.take(begin // 8, axis=1).astype(np.uint16)
    first |= octets.take(begin // 8 + 1, axis=1).astype(np.uint16) << np.uint16(8)
    first >>= (begin % 8).astype(np.uint16)
    return (first & np.uint16((1 << bits) - 1)).astype(np.uint8)


def apply_groups(
    operation: np.ufunc,
    values: NDArray[np.float32],
    factors: NDArray[np.float32],
    group: int,
    index: RawArray | None = None,
) -> None:
    """Combine each value with what its group of columns shares, in place.

    Args:
        operation: numpy.multiply, numpy.subtract, numpy.add.
        values: shape [rows, cols].
        factors: shape [rows, groups].
        group: columns of a group; the last one may be cut.
        index: the group of each column, where they do not follow each other.
    """
    rows, cols = values.shape
    if index is None and cols == group * factors.shape[1]:
        grouped = values.reshape(rows, -1, group)
        operation(grouped, factors[:, :, None], out=grouped)
        return
    group_of_column = np.arange(cols) // group if index is None else index
    step = max(1, (1 << 20) // cols)
    for start in range(0, rows, step):
        block = values[start : start + step]
        operation(block, factors[start : start + step, group_of_column], out=block)
