"""Choice among several models of a torch file, by the keys that lead to one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import cast

import torch

from specdiag.checkpoint.containers import is_beside, is_state_dict
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.modules import module_entries
from specdiag.checkpoint.nested import Walk, count_tensors, joined, spelled
from specdiag.checkpoint.state_dict import find_weights
from specdiag.checkpoint.training_state import training_state

_DEPTH = 8


def find_part(
    content: Mapping[object, object], label: str, part: str
) -> tuple[dict[str, torch.Tensor], list[str]] | None:
    """Find one of several models in a training checkpoint by the keys that lead to it.

    Args:
        content: what torch.load gave.
        label: the file, for messages.
        part: the keys, joined with dots.

    Returns:
        The tensors by name, and notes; None where no keys lead to a dictionary or module with tensors.

    Raises:
        SourceError: it holds several dictionaries of tensors of equal standing, or two tensors of one name.
    """
    value, rest = cast("object", content), part
    while rest:
        inner = _held_by(value)
        fitting = [key for key in inner if rest == spelled(key) or rest.startswith(f"{spelled(key)}.")]
        if not fitting:
            return None
        key = max(fitting, key=lambda key: len(spelled(key)))
        value, rest = inner[key], rest[len(spelled(key)) + 1 :]
    if isinstance(value, torch.Tensor) or not (walk := Walk(label).enter(value)).tensors:
        return None
    note = f"Took the weights under '{brief(part)}' of {label}."
    if not isinstance(value, Mapping):
        return walk.tensors, [note]
    tensors, notes = find_weights(cast("Mapping[object, object]", value), label)
    return tensors, [note, *notes]


def list_models(content: Mapping[object, object]) -> dict[str, int]:
    """List the state dicts that a file keeps in dictionaries of their own.

    Args:
        content: of the file.

    Returns:
        The number of tensors of each, by the keys that lead to it; empty for a state dict.
    """
    found: dict[str, int] = {}
    waiting = deque[tuple[tuple[object, ...], object]]([((), content)])
    visited = set[int]()
    while waiting:
        path, value = waiting.popleft()
        if id(value) in visited or len(path) > _DEPTH or training_state(value) is not None:
            continue
        visited.add(id(value))
        if path and is_state_dict(value):
            found[joined(path)] = count_tensors(value)
        elif isinstance(value, Mapping) and not is_state_dict(value):
            inner = cast("Mapping[object, object]", value).items()
            waiting += [((*path, key), held) for key, held in inner if not is_beside(spelled(key))]
    return found


def _held_by(value: object) -> Mapping[object, object]:
    if isinstance(value, Inert):
        return dict(module_entries(value) or value.items)
    return cast("Mapping[object, object]", value) if isinstance(value, Mapping) else {}
