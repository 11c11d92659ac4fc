"""Modules that were saved whole, by torch.save or as TorchScript: their tensors, without making a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from specdiag.checkpoint.inert import Inert

_SCRIPT = "__torch__."
_EMBEDDINGS = ("Embedding", "EmbeddingBag")
BUFFER = "buffer of its module"
EMBEDDING = "table of an embedding"
_HELD = ("_parameters", "_buffers", "_modules")


def is_script(value: object) -> bool:
    """Tell whether an object is of a class that a TorchScript program defines."""
    return isinstance(value, Inert) and value.made_by.name.startswith(_SCRIPT)


def module_entries(value: Inert) -> list[tuple[object, object]] | None:
    """List what a module holds by name: its tensors, its modules, and of TorchScript every attribute.

    Args:
        value: an object that was not made.

    Returns:
        Names and values; None for an object that is no module.
    """
    if len(value.state) != 1 or not isinstance(value.state[0], Mapping):
        return None
    state = cast("Mapping[object, object]", value.state[0])
    if is_script(value):
        return list(state.items())
    held = _held(value)
    if held is None:
        return None
    passing = _passing(state)
    parameters, buffers, modules = (holder.items() for holder in held)
    saved = [(name, inner) for name, inner in buffers if name not in passing]
    return [(name, inner) for name, inner in (*parameters, *saved, *modules) if inner is not None]


def module_attributes(value: Inert) -> list[tuple[object, object, str]]:
    """List what a module has beside its entries: buffers that are not saved, and plain attributes.

    Args:
        value: an object that was not made.

    Returns:
        Names, values and what they are; nothing for an object that is no module of torch.save.
    """
    held = _held(value)
    if held is None or is_script(value):
        return []
    state = cast("Mapping[object, object]", value.state[0])
    passing = _passing(state)
    buffers = [(name, inner, "a buffer that is not saved") for name, inner in held[1].items() if name in passing]
    plain = [(name, inner, "a plain attribute") for name, inner in state.items() if name not in _HELD]
    return [*buffers, *plain]


def tensor_kinds(values: Iterable[object]) -> dict[int, str]:
    """Tell the buffers of modules, and the tables of embeddings by their class.

    Args:
        values: everything that a file holds.

    Returns:
        BUFFER or EMBEDDING, by the `id` of the tensor.
    """
    kinds: dict[int, str] = {}
    for value in values:
        held = _held(value) if isinstance(value, Inert) and not is_script(value) else None
        if held is None:
            continue
        kinds |= {id(tensor): BUFFER for tensor in held[1].values()}
        if cast("Inert", value).made_by.name.rpartition(".")[2] in _EMBEDDINGS:
            kinds |= {id(tensor): EMBEDDING for tensor in held[0].values()}
    return kinds


def _held(value: Inert) -> tuple[Mapping[object, object], ...] | None:
    """Take parameters, buffers and modules; None for an object that is no module."""
    if len(value.state) != 1 or not isinstance(value.state[0], Mapping):
        return None
    state = cast("Mapping[object, object]", value.state[0])
    held = [state.get(key) for key in _HELD]
    if not all(isinstance(entries, Mapping) for entries in held):
        return None
    return tuple(cast("Mapping[object, object]", entries) for entries in held)


def _passing(state: Mapping[object, object]) -> set[object]:
    """Name the buffers that a state dict does not hold."""
    kept = state.get("_non_persistent_buffers_set")
    return set(cast("set[object]", kept)) if isinstance(kept, (set, frozenset)) else set()
