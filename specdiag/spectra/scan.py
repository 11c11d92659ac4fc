"""Facts of the raw values for an audit, taken in the one read: counts of bad values, dead rows, a digest.

IEEE formats order their magnitudes as their unsigned codes do, so every test is an integer comparison on the codes
with the sign masked off; a matrix with no zero, denormal, saturated or non-finite value costs one pass.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from specdiag.spectra.float_types import FloatType, RawArray

_BLOCK_VALUES = 1 << 17


@dataclass(frozen=True, slots=True)
class Scan:
    """Counts over one matrix (all its slices) and the SHA-256 of its values in C order, storage type, if asked for."""

    n_nonfinite: int
    n_denormal: int
    n_saturated: int
    n_dead_rows: int
    n_dead_cols: int
    largest: float
    digest: str | None


def scans(stacks: RawArray, dtype: FloatType) -> list[Scan]:
    """Do what `scan` does for each matrix of one shape.

    Args:
        stacks: raw values, shape [k, s, rows, cols], C-contiguous, in the storage type.
        dtype: that type.
    """
    unsigned, magnitude = _codes(dtype.storage.itemsize)
    codes = stacks.view(unsigned).reshape(len(stacks), -1) & magnitude
    lowest, highest = codes.min(axis=1), codes.max(axis=1)
    plain = (lowest >= _code(dtype, dtype.tiny)) & (highest < _code(dtype, dtype.max))
    return [
        Scan(0, 0, 0, 0, 0, largest, _digest(stack)) if is_plain else scan(stack, dtype)
        for stack, largest, is_plain in zip(stacks, _widened(highest, dtype), plain.tolist(), strict=True)
    ]


def scan(stack: RawArray, dtype: FloatType, *, with_digest: bool = True) -> Scan:
    """Count what is wrong with the values.

    Args:
        stack: raw values, shape [s, rows, cols], C-contiguous, in the storage type.
        dtype: that type.
        with_digest: False where nobody compares the values with others.
    """
    unsigned, magnitude = _codes(dtype.storage.itemsize)
    codes = stack.view(unsigned).reshape(-1, stack.shape[-1])
    tiny, largest = _code(dtype, dtype.tiny), _code(dtype, dtype.max)

    denormal = saturated = nonfinite = 0
    top = unsigned.type(0)
    has_zero = False
    step = max(1, _BLOCK_VALUES // codes.shape[1])
    for start in range(0, len(codes), step):
        block = codes[start : start + step] & magnitude
        low, high = block.min(), block.max()
        if low < tiny:
            zero = np.count_nonzero(block == 0)
            denormal += int(np.count_nonzero(block < tiny)) - int(zero)
            has_zero |= zero > 0
        if high >= largest:
            saturated += int(np.count_nonzero(block == largest))
            nonfinite += int(np.count_nonzero(block > largest))
            high = block[block <= largest].max(initial=0)
        top = max(top, high)

    rows, cols = _dead(codes.reshape(stack.shape), magnitude) if has_zero else (0, 0)
    return Scan(
        n_nonfinite=nonfinite,
        n_denormal=denormal,
        n_saturated=saturated,
        n_dead_rows=rows,
        n_dead_cols=cols,
        largest=_widened(np.array([top], unsigned), dtype)[0],
        digest=_digest(stack) if with_digest else None,
    )


def _digest(stack: RawArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(stack).data).hexdigest()


def _widened(codes: RawArray, dtype: FloatType) -> list[float]:
    return dtype.widen(codes.view(dtype.storage), np.dtype(np.float64)).tolist()


@cache
def _codes(itemsize: int) -> tuple[np.dtype[Any], Any]:
    """The unsigned type of the codes, and the mask of their magnitude."""
    unsigned = np.dtype(f"u{itemsize}")
    return unsigned, unsigned.type(np.iinfo(unsigned).max >> 1)


def _dead(codes: RawArray, magnitude: Any) -> tuple[int, int]:
    """Rows and columns that are zero in every slice: looked for among those that begin with zero."""
    rows, cols = (~(codes[at] & magnitude).any(axis=0) for at in ((slice(None), slice(None), 0), (slice(None), 0)))
    in_rows, in_cols = codes[:, rows] & magnitude, codes[:, :, cols] & magnitude
    return int(np.count_nonzero(~in_rows.any(axis=(0, 2)))), int(np.count_nonzero(~in_cols.any(axis=(0, 1))))


@lru_cache
def _code(dtype: FloatType, value: float) -> int:
    """The unsigned code of a positive value that the type holds exactly."""
    if dtype.name == "BF16":
        return int(np.float32(value).view(np.uint32) >> np.uint32(16))
    return int(dtype.storage.type(value).view(f"u{dtype.storage.itemsize}"))
