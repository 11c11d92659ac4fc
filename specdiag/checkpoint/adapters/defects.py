"""Parts of an adapter that are not in its file, though its settings or its other parts ask for them, and parts that
PEFT would not find."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple, cast

from specdiag.checkpoint.adapters.adapter import HALF, NO_RANK, OTHER_RANK, TOKEN_ROWS, Adapter
from specdiag.checkpoint.adapters.config import TOKENS
from specdiag.checkpoint.adapters.gaps import gaps
from specdiag.checkpoint.adapters.names import take_apart
from specdiag.checkpoint.adapters.not_found import not_found
from specdiag.checkpoint.adapters.targets import Targets
from specdiag.checkpoint.long_names import LONGEST
from specdiag.errors import SourceError
from specdiag.files import Table, shortened

_EITHER = frozenset({"classifier", "score"})
"""Names of heads of which PEFT lists both for classification, and a model has one."""
_HALVES = {HALF: "its other factor is not there", NO_RANK: "its rank is 0"}


class Defect(NamedTuple):
    """A part of an adapter that is not there, or that PEFT would not find.

    Attributes:
        kind: `lost`, `not found`, `rank` of factors that contradict the settings, or `empty` of an adapter without
            updates and tokens.
        name: a tensor, a parameter, a layer, or an entry of the settings.
        reason: what is wrong with it.
    """

    kind: Literal["lost", "not found", "rank", "empty"]
    name: str
    reason: str


def find_defects(adapter: Adapter, file: str | None, base: Collection[str] | None = None) -> tuple[Defect, ...]:
    """Find what an adapter lacks, by its settings and its names. Nothing is read.

    Args:
        adapter: updates, weights and tokens.
        file: its file; None in memory.
        base: names of the base model's tensors; None where they are not known.
    """
    lost = [(t.name, _HALVES[t.reason]) for t in adapter.left_out if t.reason in _HALVES]
    if not adapter.holds_base:
        lost += [*_magnitudes(adapter), *broken_promises(adapter, base), *_layers(adapter, base)]
    found = [Defect("lost", shortened(name, LONGEST), reason) for name, reason in lost]
    if file is not None and not adapter.holds_base:
        found += [Defect("not found", name, reason) for name, reason in not_found(adapter, file)]
    ranks = {take_apart(t.name).module: t.reason for t in adapter.left_out if OTHER_RANK.fullmatch(t.reason or "")}
    found += [Defect("rank", shortened(name, LONGEST), str(reason)) for name, reason in ranks.items()]
    is_read = not ranks and not any(str(tensor.reason).endswith("not supported") for tensor in adapter.left_out)
    if is_read and not adapter.updates and not adapter.tokens:
        found.append(Defect("empty", "", "no updates at all"))
    return tuple(found)


def broken_promises(adapter: Adapter, base: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Name the entries of modules_to_save and of trained tokens that the adapter does not hold.

    Args:
        adapter: updates, weights and tokens.
        base: names of the base model's tensors; None where they are not known.

    Yields:
        The entry, and what is wrong with it.
    """
    yield from _modules(adapter, base)
    yield from _tokens(adapter, base)


def _magnitudes(adapter: Adapter) -> Iterator[tuple[str, str]]:
    if adapter.config.has_magnitudes:
        without = (update for update in adapter.updates if update.magnitude is None)
        yield from ((update.name, "no DoRA magnitude, and use_dora is true") for update in without)


def _modules(adapter: Adapter, base: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Name the entries of modules_to_save that no stored tensor belongs to, and that the base model has."""
    pieces = (take_apart(tensor.name) for tensor in adapter.left_out)
    whole = (piece.module for piece in pieces if piece.kind in ("weight", "frozen"))
    held = _paths([*(weight.name for weight in adapter.weights), *whole])
    there = None if base is None else _paths(base)
    promised = _texts(adapter.config.settings.get("modules_to_save"))
    either = _EITHER.intersection(promised)
    has_one = any(path.endswith(tuple(either)) for path in held) if either else False
    for entry in promised:
        is_held = any(path.endswith(entry) for path in held) or (has_one and entry in either)
        if not is_held and (there is None or any(path.endswith(entry) for path in there)):
            yield entry, "not there"


def _tokens(adapter: Adapter, base: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Name the tables whose trained rows are not there. Of tables that are tied PEFT writes one."""
    settings = adapter.config.settings
    key = "token_indices" if settings.get("peft_type") == "TRAINABLE_TOKENS" else TOKENS
    promised = settings.get(key)
    known = {tokens.values.name for tokens in adapter.tokens}
    strange = [t.name for t in adapter.left_out if t.reason == TOKEN_ROWS and t.name not in known]
    yield from ((name, f"its rows are not those that {key} lists") for name in strange)
    if not promised or strange:
        return
    tables = cast("Table", promised) if isinstance(promised, dict) else {"": promised}
    held = {tokens.module: list(tokens.rows) for tokens in adapter.tokens}
    there = None if base is None else _paths(base)
    for entry, rows in tables.items():
        is_tied = rows in held.values() and not any(path.endswith(entry) for path in there or ())
        if not is_tied and not any(module.endswith(entry) for module in held):
            yield f"{key}.{entry}".rstrip("."), "not there"


def _layers(adapter: Adapter, base: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """Name layers and modules without an update; none where the settings cannot be followed."""
    targets = Targets(adapter.config.settings)
    factors = (take_apart(tensor.name) for tensor in adapter.left_out)
    modules = {u.module for u in adapter.updates} | {p.module for p in factors if p.kind in ("down", "up")}
    if not modules:
        return
    listed = {layer for layer in targets.layers or () if type(layer) is int}
    present = {targets.layer(module) for module in modules}
    absent = sorted(listed - present) if base is None else []
    if len(absent) <= len(present):  # else the model has such modules in few layers
        yield from ((f"layers_to_transform.{layer}", "no update is of this layer") for layer in absent)
    try:
        missing = list(gaps(modules, targets, base))
    except SourceError:
        return
    for name in missing:
        if targets.layer(f"{name}.") not in absent:
            yield name, "no update is of it, though the settings name it"


def _paths(names: Collection[str]) -> frozenset[str]:
    """Collect the modules on the way to each parameter."""
    found: set[str] = set()
    for name in names:
        parts = name.split(".")[:12]
        found |= {".".join(parts[:last]) for last in range(1, len(parts))}
    return frozenset(found)


def _texts(value: object) -> list[str]:
    entries = cast("list[object]", value) if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, str)]
