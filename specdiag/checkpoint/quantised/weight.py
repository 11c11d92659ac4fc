"""A weight in codes: the tensors that make it, and how they become values."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import Rounding, StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FLOAT_TYPES, RawArray

Decode = Callable[..., NDArray[np.float32]]
"""Computes the values of a weight from the raw values of its parts."""


class NotUnderstood(Exception):
    """Codes that cannot be turned into values; the message names the format and what is missing."""


class Weight(Struct, frozen=True):
    """A quantised weight.

    Attributes:
        name: that of the parameter.
        shape: that of the parameter.
        format: a short name, `gptq-int4`.
        parts: codes first, then scales and the like.
        decode: the values [rows, cols] in float32 from one array a part. Of a `stacked` weight those of one item.
        rounding: how coarse the codes are.
        stacked: whether parts whose first axis is as long as that of `shape` hold one item of the stack each.
        scaled: whether anything but the codes decides the values.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    parts: tuple[StoredTensor, ...]
    decode: Decode
    rounding: Rounding
    stacked: bool = False
    scaled: bool = True

    def tensor(self) -> StoredTensor:
        """Give the weight as a tensor whose values are computed when it is read."""
        codes = self.parts[0]
        return StoredTensor(
            name=self.name,
            shape=self.shape,
            dtype=self.format,
            nbytes=sum(part.nbytes for part in self.parts),
            file=codes.file,
            read=partial(_read, self),
            storage=self._storage(),
            values="F32",
            rounding=self.rounding,
        )

    def _storage(self) -> Hashable | None:
        memory = tuple(part.storage for part in self.parts)
        return None if None in memory else memory

    def per_item(self, part: StoredTensor) -> bool:
        """Tell whether a part has an entry for each item of the stack.

        Args:
            part: codes, scales or the like; one of `parts`.
        """
        return self.stacked and part.shape[:1] == self.shape[:1]


def array(tensor: StoredTensor, index: int | None = None) -> RawArray:
    """Read the raw values of a tensor in its shape. Types that numpy lacks come as bytes.

    Args:
        tensor: codes, scales or the like.
        index: of the first axis; None for all of it.

    Raises:
        SourceError: the file holds another number of values.
    """
    shape = tensor.shape if index is None else tensor.shape[1:]
    raw = tensor.read(index)
    if raw.dtype == np.uint8 and index is not None and raw.size * tensor.shape[0] != tensor.nbytes:
        raw = _bytes(tensor).reshape(tensor.shape[0], -1)[index]
    if tensor.dtype == "F4":
        shape = (*shape[:-1], shape[-1] // 2)
    if raw.size != math.prod(shape):
        raise SourceError(f"'{tensor.file}' holds {raw.size} values of '{tensor.name}' instead of {math.prod(shape)}")
    return raw.reshape(shape)


def floats(raw: RawArray, tensor: StoredTensor) -> NDArray[np.float32]:
    """Convert scales to float32.

    Args:
        raw: their raw values, as `array` gives them.
        tensor: the scales; its type says how to read the values.
    """
    from specdiag.checkpoint.quantised.codes import FLOAT8

    if tensor.dtype in FLOAT_TYPES:
        return FLOAT_TYPES[tensor.dtype].widen(raw, np.dtype(np.float32))
    return FLOAT8["F8_E8M0" if tensor.dtype == "U8" else tensor.dtype][raw]


def _bytes(tensor: StoredTensor) -> RawArray:
    raw = tensor.read(None)
    if raw.size % tensor.shape[0]:
        raise SourceError(f"'{tensor.file}' holds {raw.size} bytes of '{tensor.name}', no whole number for each item")
    return raw


def _read(weight: Weight, index: int | None) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if not weight.stacked:
            values = _decode(weight, [array(part) for part in weight.parts], weight.shape)
            return values if index is None else values[index].copy()
        if index is not None:
            raw = [array(part, index if weight.per_item(part) else None) for part in weight.parts]
            return _decode(weight, raw, weight.shape[1:])
        parts = [(weight.per_item(part), array(part)) for part in weight.parts]
        values = np.empty(weight.shape, np.float32)
        for i, item in enumerate(values):
            item[...] = _decode(weight, [raw[i] if is_stacked else raw for is_stacked, raw in parts], weight.shape[1:])
        return values


def _decode(weight: Weight, raw: list[RawArray], shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.asarray(weight.decode(*raw))
    if values.shape != shape:
        raise SourceError(f"'{weight.name}' dequantises to shape {values.shape}, not {shape}: it is damaged")
    return values
