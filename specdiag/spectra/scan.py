"""Facts of the raw values for an audit, taken in the one read: counts of bad values, dead rows, a digest.

IEEE formats order their magnitudes as their unsigned codes do, so every test is an integer comparison on the codes
with the sign masked off; a matrix with no zero, denormal, saturated or non-finite value costs one pass.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from specdiag.spectra.float_types import FloatType, RawArray

_BLOCK_VALUES = 1 << 17


@dataclass(frozen=True, slots=True)
class Scan:
    """Counts over one matrix (all its slices) and the SHA-256 of its values in C order, storage type."""

    n_nonfinite: int
    n_denormal: int
    n_saturated: int
    n_dead_rows: int
    n_dead_cols: int
    largest: float
    digest: str


def scan(stack: RawArray, dtype: FloatType) -> Scan:
    """Count what is wrong with the values.

    Args:
        stack: raw values, shape [s, rows, cols], C-contiguous, in the storage type.
        dtype: that type.
    """
    unsigned = np.dtype(f"u{dtype.storage.itemsize}")
    codes = stack.view(unsigned).reshape(-1, stack.shape[-1])
    magnitude = unsigned.type(np.iinfo(unsigned).max >> 1)
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

    rows, cols = _dead(codes & magnitude, stack.shape) if has_zero else (0, 0)
    return Scan(
        n_nonfinite=nonfinite,
        n_denormal=denormal,
        n_saturated=saturated,
        n_dead_rows=rows,
        n_dead_cols=cols,
        largest=float(dtype.widen(np.array([top], unsigned).view(dtype.storage), np.dtype(np.float64))[0]),
        digest=hashlib.sha256(np.ascontiguousarray(stack).data).hexdigest(),
    )


def _dead(codes: RawArray, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that are zero in every slice."""
    alive = codes.reshape(shape) != 0
    return int(np.count_nonzero(~alive.any(axis=(0, 2)))), int(np.count_nonzero(~alive.any(axis=(0, 1))))


@cache
def _code(dtype: FloatType, value: float) -> int:
    """The unsigned code of a positive value that the type holds exactly."""
    if dtype.name == "BF16":
        return int(np.float32(value).view(np.uint32) >> np.uint32(16))
    return int(dtype.storage.type(value).view(f"u{dtype.storage.itemsize}"))
