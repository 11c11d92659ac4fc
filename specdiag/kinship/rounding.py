"""Differences of one function that the storage of two models explains: rounding to their types, or codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specdiag.function.arrays import Array, on_host
from specdiag.function.stored import Weight
from specdiag.kinship.models import Model
from specdiag.kinship.records import Thresholds
from specdiag.kinship.signs import weights_of
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType

CODES = "codes of 8 bits"
_LOOKED_AT = 1 << 22
"""Values of a matrix that are looked at: its first rows."""
_RUN, _REPEATED = 64, 0.1
"""Values in a row that are held beside each other, and the share of repeated ones from which they are decoded codes.

Of Gaussian values 6 % repeat but for the sign in bfloat16, and 14 to 37 % in codes of 8 bits, with a scale for 32 to
4,096 of them.
"""


def explained(models: Sequence[Model], limits: Thresholds) -> tuple[float, str]:
    """Give the relative difference of products that the coarser storage explains, and the name of that storage.

    Args:
        models: of one function, perhaps.
        limits: the difference that codes explain, and the least one.

    Raises:
        SourceError: a tensor cannot be read.
    """
    codes = (2 * (1 - limits.same_cosine)) ** 0.5
    kinds = {_kind(weight) for model in models for weight in _sample(model)}
    return max((codes, CODES) if kind is None else (max(limits.same_change, kind.eps), kind.name) for kind in kinds)


def _sample(model: Model) -> list[Weight]:
    """Take the matrices of the first, the middle and the last block."""
    blocks = list(model.blocks.values())
    places = sorted({0, len(blocks) // 2, len(blocks) - 1}) if blocks else []
    return [weight for i in places for weight in weights_of(blocks[i])]


def _kind(weight: Weight) -> FloatType | None:
    """Give the coarsest type that holds the values, which may be stored in a finer one; None for codes."""
    kind = FLOAT_TYPES[weight.matrix.tensor.values_dtype]
    if weight.matrix.dequantized or kind.eps > FLOAT_TYPES["BF16"].eps:
        return None
    values = on_host(weight.read().weight)[: max(1, _LOOKED_AT // weight.shape[1])]
    if _has_codes(values):
        return None
    types = (FLOAT_TYPES[name] for name in ("BF16", "F16") if FLOAT_TYPES[name].eps > kind.eps)
    return next((coarser for coarser in types if _holds(coarser, values)), kind)


def _holds(kind: FloatType, values: Array) -> bool:
    return np.array_equal(kind.widen(kind.narrow(values), np.dtype(np.float64)), values)


def _has_codes(values: Array) -> bool:
    """Tell whether so many values of a row are the same that they were decoded from few codes. Zeros do not count."""
    values = np.abs(values)
    run = min(_RUN, values.shape[1])
    runs = values[:, : values.shape[1] // run * run].reshape(-1, run)
    ordered = np.sort(runs, axis=1)
    both = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
    return int(both.sum()) > _REPEATED * both.size
