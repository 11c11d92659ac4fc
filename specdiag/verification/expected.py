"""The weights that a right merge gives, and the other ways in which programs round or misapply an update."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from msgspec import structs

from specdiag.checkpoint.adapters.adapter import Adapter
from specdiag.checkpoint.adapters.defects import broken_promises
from specdiag.checkpoint.adapters.match import Names
from specdiag.checkpoint.adapters.merge import merge, parameter
from specdiag.checkpoint.adapters.update import Update
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray
from specdiag.verification.records import NotCompared

_BIAS = re.compile(r"(base_model\.model\.)?(?P<module>.+)\.lora_(embedding_)?[AB](\.[^.]+)?\.bias")


@dataclass(frozen=True, slots=True)
class Expected:
    """The tensors of a right merge.

    Attributes:
        tensors: by name, in the layout of the base model.
        base: the base model's own, by name.
        updates: the update of each parameter that has one, turned as the parameter is stored.
        not_compared: what the adapter holds and no tensor shows.
        tied: updates of tables that the adapter brings along, since the base model shares them and does not store them.
    """

    tensors: Mapping[str, StoredTensor]
    base: Mapping[str, StoredTensor]
    updates: Mapping[str, Update]
    not_compared: tuple[NotCompared, ...] = ()
    tied: Mapping[str, Update] = field(default_factory=dict[str, Update])

    def base_of(self, name: str) -> StoredTensor | None:
        """Find the tensor of the base model that an update changes; None where none does."""
        return self.base.get(name) if name in self.updates else None

    def n_replaced(self) -> int:
        """Count the tensors that the adapter holds whole, or rows of, with other values than the base model has.

        Raises:
            SourceError: one of them cannot be read.
        """
        own = ((self.base.get(name), tensor) for name, tensor in self.tensors.items() if name not in self.updates)
        return sum(before is None or (before is not after and _differ(before, after)) for before, after in own)


def expect(adapter: Adapter | None, base: Sequence[StoredTensor], where: str, onto: str) -> Expected:
    """Form the tensors of a right merge. Nothing is read.

    Args:
        adapter: None where the model is only converted or quantised.
        base: the tensors of the base model.
        where: the adapter, for messages.
        onto: the base model, for messages.

    Raises:
        SourceError: the adapter cannot be applied whole, or not to a model of these shapes.
    """
    tensors = {tensor.name: tensor for tensor in base}
    if adapter is None:
        return Expected(tensors, tensors, {})
    names = Names([*tensors, *(weight.name for weight in adapter.weights)])
    brought = {name: weight for weight in adapter.weights if (name := names.find(weight.name)) not in tensors and name}
    updates: dict[str, Update] = {}
    kept: list[Update] = []
    places: dict[str, tuple[str, Update]] = {}
    strange: list[NotCompared] = []
    for update in adapter.updates:
        try:
            name = parameter(update, names, where, onto)
        except SourceError as error:
            strange.append(
                NotCompared(
                    side="adapter", name=update.module, shape=update.shape, dtype=update.up.dtype,
                    reason=str(error), cause="module missing",
                )
            )  # fmt: skip
            continue
        kept.append(update)
        places[update.module] = name, update
        own = tensors.get(name) or brought.get(name)
        fitted = None if own is None else update.fitted_to(own.shape)
        if fitted is not None:
            updates[name] = fitted
    merged = merge(replace(adapter, updates=tuple(kept)), base, where, onto)
    left_out = {tensor.name for tensor in adapter.left_out}
    expected = {t.name: t for t in merged if t.name not in left_out or t.name in tensors}
    shown = {tokens.values.name for tokens in adapter.tokens}
    for tensor in adapter.left_out:
        bias = _BIAS.fullmatch(tensor.name)
        if bias is None or bias["module"] not in places or tensor.values_dtype not in FLOAT_TYPES:
            continue
        weight, update = places[bias["module"]]
        name = f"{weight.removesuffix('weight')}bias"
        if name in expected and expected[name].shape == tensor.shape:
            expected[name] = _with_bias(expected[name], tensor, update)
            shown.add(tensor.name)
    rest = (
        NotCompared(side="adapter", name=t.name, shape=t.shape, dtype=t.dtype, reason=t.reason or "not understood")
        for t in adapter.left_out
        if t.name not in shown
    )
    lost = (
        NotCompared(side="adapter", name=name, shape=(), dtype="", reason=reason, cause="lost by the adapter")
        for name, reason in broken_promises(adapter, tensors)
    )
    tied = {name: update for name, update in places.values() if name not in tensors}
    of_ties = {name: structs.replace(brought[name], name=name) for name in tied if name in brought}
    return Expected(expected, tensors | of_ties, updates, (*strange, *lost, *rest), tied)


def _differ(before: StoredTensor, after: StoredTensor) -> bool:
    if before.shape != after.shape or not {before.values_dtype, after.values_dtype} <= FLOAT_TYPES.keys():
        return True
    wide = np.dtype(np.float64)
    values = [FLOAT_TYPES[tensor.values_dtype].widen(tensor.read(None), wide) for tensor in (before, after)]
    return not np.array_equal(values[0], values[1], equal_nan=True)


def _with_bias(base: StoredTensor, bias: StoredTensor, update: Update) -> StoredTensor:
    """Add the bias of an update, times its scale, to that of its module."""

    def read(_: int | None) -> RawArray:
        wide = np.dtype(np.float64)
        own, added = (FLOAT_TYPES[t.values_dtype].widen(t.read(None), wide) for t in (base, bias))
        return (own + update.scale() * added).astype(np.float64 if base.values_dtype == "F64" else np.float32)

    return structs.replace(base, read=read, values=_wide(base), rounding=None)


def merged_by(update: Update, base: StoredTensor, times: int = 1) -> StoredTensor:
    """Apply an update to its parameter, perhaps more than once.

    Args:
        update: turned as the parameter is stored.
        base: the parameter.
        times: how often.
    """

    def read(_: int | None) -> RawArray:
        raw, kind = base.read(None), FLOAT_TYPES[base.values_dtype]
        for _ in range(times):
            raw, kind = update.added_to(raw, kind), FLOAT_TYPES[_wide(base)]
        return raw

    return structs.replace(base, read=read, values=_wide(base), rounding=None)


def product(update: Update, base: StoredTensor) -> StoredTensor:
    """Form s B A in float64, without magnitudes, in the layout of its parameter.

    Args:
        update: turned as the parameter is stored.
        base: the parameter.
    """
    plain = replace(update, magnitude=None)

    def read(_: int | None) -> RawArray:
        return plain.added_to(np.zeros(base.shape), FLOAT_TYPES["F64"])

    return structs.replace(base, read=read, dtype="F64", values="F64", rounding=None)


def change(update: Update, base: StoredTensor) -> StoredTensor:
    """Form what an update changes of its parameter, with DoRA's magnitudes, in float64.

    Args:
        update: turned as the parameter is stored.
        base: the parameter.
    """
    if update.magnitude is None:
        return product(update, base)
    merged = merged_by(update, base)

    def read(_: int | None) -> RawArray:
        wide = np.dtype(np.float64)
        after, before = (FLOAT_TYPES[t.values_dtype].widen(t.read(None), wide) for t in (merged, base))
        return after - before

    return structs.replace(base, read=read, dtype="F64", values="F64", rounding=None)


def roundings(update: Update, base: StoredTensor, kind: FloatType) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the orders of rounding of programs that compute in the type of the merged weight.

    Args:
        update: turned as the parameter is stored.
        base: the parameter.
        kind: the type.
    """
    if update.magnitude is not None or kind.name in ("F32", "F64"):
        return
    of_base = FLOAT_TYPES[base.values_dtype]
    low = replace(update, down=_narrowed(update.down, kind), up=_narrowed(update.up, kind))
    bases = [("", base)] if of_base.eps >= kind.eps else [("", base), ("W and ", _narrowed(base, kind))]
    for word, weight in bases:
        if word:
            yield f"W cast to {kind.name} first", merged_by(update, weight)
        yield f"{word}product cast to {kind.name}", added(weight, _narrowed(product(update, base), kind))
        yield f"{word}factors cast to {kind.name}", merged_by(low, weight)
        yield (
            f"{word}factors and product cast to {kind.name}",
            added(weight, _narrowed(product(low, base), kind)),
        )


def added(base: StoredTensor, delta: StoredTensor) -> StoredTensor:
    """Add a tensor of the same number of values, in float64.

    Args:
        base: whose shape the sum has.
        delta: what is added.
    """

    def read(_: int | None) -> RawArray:
        wide = np.dtype(np.float64)
        w = FLOAT_TYPES[base.values_dtype].widen(base.read(None), wide)
        return w + FLOAT_TYPES[delta.values_dtype].widen(delta.read(None), wide).reshape(w.shape)

    return structs.replace(base, read=read, values="F64", rounding=None)


def _narrowed(tensor: StoredTensor, kind: FloatType) -> StoredTensor:
    def read(_: int | None) -> RawArray:
        own = FLOAT_TYPES[tensor.values_dtype]
        return kind.narrow(own.widen(tensor.read(None), np.dtype(np.float64)))

    return structs.replace(tensor, read=read, dtype=kind.name, values=kind.name, rounding=None)


def _wide(base: StoredTensor) -> str:
    return "F64" if base.values_dtype == "F64" else "F32"
