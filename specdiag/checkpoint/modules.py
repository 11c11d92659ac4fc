"""Modules that were saved whole, by torch.save or as TorchScript: their tensors, without making a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from specdiag.checkpoint.inert import Inert

_SCRIPT = "__torch__."
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
    held = [state.get(key) for key in _HELD]
    if not all(isinstance(entries, Mapping) for entries in held):
        return None
    kept = state.get("_non_persistent_buffers_set")
    passing = cast("set[object]", kept) if isinstance(kept, (set, frozenset)) else set[object]()
    entries = [entry for holder in held for entry in cast("Mapping[object, object]", holder).items()]
    return [(name, inner) for name, inner in entries if inner is not None and name not in passing]
