"""Floating-point storage types. numpy has no bfloat16: BF16 travels as its uint16 codes, and `widen` alone knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Real = TypeVar("_Real", bound=np.floating[Any])

RawArray = NDArray[Any]
"""An array in the type in which a file stores it."""
RealArray = NDArray[np.floating[Any]]
"""An array of float32 or float64."""
RealType = np.dtype[Any]
"""float32 or float64."""


@dataclass(frozen=True, slots=True)
class FloatType:
    """A floating-point storage type.

    Attributes:
        name: the safetensors spelling, such as `BF16`.
        storage: the numpy type that holds its raw values.
        eps: spacing of the type at 1.
        max: largest finite value.
        tiny: smallest positive normal value.
    """

    name: str
    storage: np.dtype[Any]
    eps: float
    max: float
    tiny: float

    def widen(self, raw: RawArray, dtype: np.dtype[_Real]) -> NDArray[_Real]:
        """Convert raw values exactly.

        Args:
            raw: values in the storage type, any shape.
            dtype: float32 or float64.

        Returns:
            A C-contiguous array of `dtype` and of the same shape.
        """
        if self.name == "BF16":
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.ascontiguousarray(raw, dtype=dtype)

    def narrow(self, values: NDArray[np.float64]) -> RawArray:
        """Round values to the storage type, to the nearest and halves to even.

        Args:
            values: any shape.

        Returns:
            Raw values in the storage type, C-contiguous.
        """
        if self.name != "BF16":
            with np.errstate(over="ignore"):
                return np.ascontiguousarray(values, dtype=self.storage)
        codes = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (codes + np.uint32(0x7FFF) + ((codes >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (codes >> np.uint32(16)) | np.uint32(0x40)
        return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def _ieee(name: str, dtype: type[np.floating[Any]]) -> FloatType:
    info = np.finfo(dtype)
    return FloatType(name, np.dtype(dtype), float(info.eps), float(info.max), float(info.tiny))


FLOAT_TYPES: dict[str, FloatType] = {
    "F64": _ieee("F64", np.float64),
    "F32": _ieee("F32", np.float32),
    "F16": _ieee("F16", np.float16),
    "BF16": FloatType("BF16", np.dtype(np.uint16), 2.0**-7, 3.3895313892515355e38, float(np.finfo(np.float32).tiny)),
}
"""The types that can be analysed, by their safetensors spelling."""
