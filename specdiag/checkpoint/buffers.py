"""Buffers stored as floats among the weights, known by name and by value: masks, and tables of sines and cosines."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from specdiag.architecture.names import numbered
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FLOAT_TYPES

SINUSOIDS = "buffer: table of sines and cosines"
MASK = "buffer: mask"

_MASK = re.compile(r"(?:masks?|(?:^|_)(?:tri[lu]|causal|subsequent))(?=_|$)", re.IGNORECASE)
"""Fits a word in the last segment of a name."""
_POSITIONS = re.compile(
    r"(?:^|[._])(?:pe|pos|pos_?emb\w*|pos_?enc\w*|pos_?tab\w*|positions?|positional\w*|position_\w+|embed_positions|timing\w*|"
    r"sin|cos|sinusoid\w*|freqs\w*|rope\w*|rotary\w*)(?:\.#)*(?:\.(?:weight|pe|emb|embeddings?))?$",
    re.IGNORECASE,
)
_RELATIVE = re.compile(r"rel|bias", re.IGNORECASE)

_LARGEST = 1 << 24
"""Values of the largest tensor that is read to tell a buffer from a weight."""
_SMALL = 1 << 16
"""Values of a mask that is read for itself."""
_MOST = 1 << 26
"""Values that are read of all tensors together."""
_LEVELS = 3
"""Most values of a mask: kept, masked, and padding."""
_RESIDUAL = 1e-5
"""Share of the square of a table that rounding to bfloat16 leaves of its recurrence; a trained table leaves 1e-2."""
_TOLERANCE = 1e-2
_STRAIGHT = 1e-3
"""Distance of a column's factor from 2 at which it turns within some hundred rows."""


@dataclass(frozen=True, slots=True)
class Buffers:
    """Buffers by names and values together.

    Attributes:
        reasons: why each buffer is no weight, by its name.
        trained: names that sound like masks and hold other values.
    """

    reasons: dict[str, str]
    trained: frozenset[str]


def find_buffers(tensors: Sequence[StoredTensor]) -> Buffers:
    """Read the tensors whose names leave open whether they are buffers, and tell by their values.

    Masks that differ by an index alone are of one kind: where one is trained, all are. Of large ones the first is read.
    Tensors that cannot be read, or would be much to read, stay undecided.

    Args:
        tensors: all tensors of a checkpoint.
    """
    reasons: dict[str, str] = {}
    masks: dict[str, bool | None] = {}
    families: defaultdict[str, list[str]] = defaultdict(list)
    values = _Values()
    for tensor in tensors:
        if len(tensor.shape) < 2 or tensor.values_dtype not in FLOAT_TYPES or tensor.reason is not None:
            continue
        pattern = numbered(tensor.name)
        sounds_like = _sound(pattern)
        if sounds_like == MASK:
            families[pattern].append(tensor.name)
            if pattern not in masks or (masks[pattern] and math.prod(tensor.shape) <= _SMALL):
                masks[pattern] = _is_mask(values.of(tensor))
        elif sounds_like == SINUSOIDS and _is_sinusoidal(values.of(tensor)):
            reasons[tensor.name] = SINUSOIDS
    reasons |= {name: MASK for pattern, family in families.items() if masks[pattern] for name in family}
    trained = {name for pattern, family in families.items() if masks[pattern] is False for name in family}
    return Buffers(reasons, frozenset(trained))


@lru_cache(4096)
def _sound(pattern: str) -> str | None:
    """Name the buffer that a name with its indices written `#` may be; None for any other."""
    if _MASK.search(pattern.rpartition(".")[2]):
        return MASK
    return SINUSOIDS if _POSITIONS.search(pattern) and not _RELATIVE.search(pattern) else None


@dataclass(slots=True)
class _Values:
    """The values of tensors, as long as all that were read together are few."""

    n_read: int = 0

    def of(self, tensor: StoredTensor) -> NDArray[np.float64] | None:
        """Read a tensor; None where it is large, others were, or it cannot be read."""
        n = math.prod(tensor.shape)
        if not 0 < n <= _LARGEST or self.n_read + n > _MOST:
            return None
        self.n_read += n
        try:
            raw = tensor.read(None)
        except SourceError:
            return None  # reported with the row, if it gets one
        return FLOAT_TYPES[tensor.values_dtype].widen(raw, np.dtype(np.float64))


def _is_mask(values: NDArray[np.float64] | None) -> bool | None:
    return None if values is None else len(np.unique(values)) <= _LEVELS


def _is_sinusoidal(values: NDArray[np.float64] | None) -> bool:
    """Tell a table of sinusoids: x[t+1] + x[t-1] = c x[t] in every column, or sin^2 + cos^2 in every row."""
    if values is None or values.shape[-1] < 4:
        return False
    table = values.reshape(-1, values.shape[-1])
    largest = float(np.abs(table).max(initial=0.0))
    if len(table) < 8 or not abs(largest - 1) <= _TOLERANCE:  # NaN is none either
        return False
    return len(np.unique(table)) > _LEVELS and (_recurs(table) or _has_equal_rows(table))


def _recurs(table: NDArray[np.float64]) -> bool:
    around, at = table[2:] + table[:-2], table[1:-1]
    square = np.square(at).sum(axis=0)
    factors = np.divide((around * at).sum(axis=0), square, out=np.zeros_like(square), where=square > 0)
    rest, whole = np.square(around - factors * at).sum(), np.square(around).sum()
    turns = np.mean(factors < 2 - _STRAIGHT)  # a straight line, or a constant, has the factor 2
    return bool(rest <= _RESIDUAL * whole) and bool((np.abs(factors) <= 2 + _TOLERANCE).all()) and bool(turns >= 1 / 8)


def _has_equal_rows(table: NDArray[np.float64]) -> bool:
    """Tell whether every row has the square of half its length, but for one of zeros in front, a class token's."""
    squares = np.square(table).sum(axis=1)
    squares = squares[1:] if squares[0] == 0 else squares
    return bool((np.abs(squares / (table.shape[1] / 2) - 1) <= _TOLERANCE).all())
