"""The way down through the dictionaries that a script put around a state dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from specdiag.checkpoint.containers import are_twins, find_beside, is_state_dict
from specdiag.checkpoint.entries import Entry, describe_entry, is_matrix, list_entries
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.nested import joined
from specdiag.errors import SourceError

_DEPTH = 8
_Keys = tuple[object, ...]


def peel(keys: _Keys, value: object, label: str) -> tuple[_Keys, object, list[str]]:
    """Go down through dictionaries that hold a state dict and no other weights: their keys are no modules' names.

    Args:
        keys: those that lead to the value.
        value: whatever lies there.
        label: the file, for messages.

    Returns:
        The keys that lead to the state dict, the state dict, and the tensors that lie on the way; what was given, where
        they lead to none.

    Raises:
        SourceError: a dictionary on the way holds one network several times.
    """
    path, inner, left = keys, value, list[str]()
    while isinstance(inner, Mapping) and not is_state_dict(inner) and len(path) < _DEPTH:
        entries = cast("Mapping[object, object]", inner)
        beside = find_beside(entries)
        walked = [entry for entry in list_entries(entries, label) if entry.key not in beside and entry.walk.tensors]
        held = [entry for entry in walked if not entry.loose or any(map(is_matrix, entry.walk.tensors.values()))]
        _refuse_twins(held, path, label)
        if len(held) != 1:
            return keys, value, []
        left += [describe_entry(entry) for entry in walked if entry is not held[0]]
        path, inner = (*path, held[0].key), held[0].value
    return (path, inner, left) if is_state_dict(inner) else (keys, value, [])


def _refuse_twins(entries: Sequence[Entry], path: tuple[object, ...], label: str) -> None:
    for place, entry in enumerate(entries):
        twin = next((other for other in entries[:place] if are_twins(other.value, entry.value)), None)
        if twin is not None:
            one, other = (brief(joined((*path, found.key))) for found in (twin, entry))
            raise SourceError(
                f"'{label}' holds one network twice, under '{one}' and '{other}': pick one, such as with part={one}, "
                "or save the one to analyse in a file of its own"
            )
