"""Weights in the place of the Parameters that they are computed from: weight norm, spectral norm, pruning masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from specdiag.architecture.parametrised import Parametrised, find_parametrised, spectral_axis
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES, RawArray
from specdiag.text.counts import counted

Array = NDArray[np.float64]


def compute_parametrised(tensors: Sequence[StoredTensor]) -> tuple[list[StoredTensor], list[str]]:
    """Put weights in the place of the tensors that they are computed from; nothing is read.

    Args:
        tensors: everything that a checkpoint stores, under final names.

    Returns:
        The tensors in stored order, parts of weights with the reason why they are left out; a note for each kind.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    weights: dict[str, StoredTensor] = {}
    reasons: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    for weight in find_parametrised({tensor.name: tensor.shape for tensor in tensors}):
        parts = [by_name[name] for name in weight.parts]
        if weight.kind is None or any(part.dtype not in FLOAT_TYPES and part.dtype != "BOOL" for part in parts):
            why = (
                "part of a weight that is stored beside it"
                if weight.name in by_name
                else f"part of {weight.name}, which is parametrised in a way that the file does not tell"
            )
            reasons |= {part.name: why for part in parts if part.reason is None}
            continue
        kinds[weight.kind] += 1
        weights[parts[0].name] = _weight(weight, parts)
        reasons |= {part.name: f"part of a weight ({weight.kind})" for part in parts[1:]}
    computed = [
        weights[t.name] if t.name in weights else replace(t, reason=reasons[t.name]) if t.name in reasons else t
        for t in tensors
    ]
    return computed, [f"Computed {counted(n, 'weight')} from the parts of {kind}." for kind, n in kinds.items()]


def _weight(weight: Parametrised, parts: Sequence[StoredTensor]) -> StoredTensor:
    base = parts[0]
    kind = FLOAT_TYPES[base.dtype]
    compute = {"weight norm": _scaled, "spectral norm": _normalised, "pruning": _masked}[weight.kind or "pruning"]

    def read(index: int | None) -> RawArray:
        with np.errstate(divide="ignore", invalid="ignore"):  # a direction of zeros has no length: NaN, as in torch
            values = kind.narrow(compute([_values(part) for part in parts]))
        return values if index is None else values[index]

    return StoredTensor(
        name=weight.name,
        shape=base.shape,
        dtype=base.dtype,
        nbytes=sum(part.nbytes for part in parts),
        file=base.file,
        read=read,
        parametrized=True,
    )


def _values(part: StoredTensor) -> Array:
    raw = part.read(None)
    return raw.astype(np.float64) if part.dtype == "BOOL" else FLOAT_TYPES[part.dtype].widen(raw, np.dtype(np.float64))


def _scaled(parts: Sequence[Array]) -> Array:
    """g v/||v||, the norm over the axes on which g has one value."""
    direction, length = parts
    if length.size == 1:
        return direction * (length.reshape(-1)[0] / np.linalg.norm(direction))
    axes = tuple(axis for axis, size in enumerate(length.shape) if size == 1)
    return direction * (length / np.sqrt(np.square(direction).sum(axis=axes, keepdims=True)))


def _normalised(parts: Sequence[Array]) -> Array:
    """W/(u^T W v), with the vectors that training left, as torch does for a model that is not trained."""
    weight, u, v = parts
    axis = spectral_axis(weight.shape, u.shape, v.shape)
    matrix = np.moveaxis(weight, axis, 0).reshape(len(u), -1)
    return weight / (u @ matrix @ v)


def _masked(parts: Sequence[Array]) -> Array:
    weight, mask = parts
    return weight * mask
