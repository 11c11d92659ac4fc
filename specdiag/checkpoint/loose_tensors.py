"""Tensors of a module that was saved whole and that its state_dict lacks: attributes, buffers that are not saved."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import cast

import torch

from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.modules import module_attributes, module_entries

_Path = tuple[object, ...]
_DEPTH = 64
_HOLDERS = (torch.Tensor, Inert, Mapping, list, tuple, AbstractSet)


def loose_tensors(
    module: Inert, path: _Path, listed: Container[int], visited: set[int]
) -> list[tuple[_Path, str, int]]:
    """Count them by the attributes that hold them, in the module and in those below.

    Args:
        module: an object that was not made.
        path: the keys that lead to it.
        listed: identities of the tensors that have names.
        visited: identities of all that was looked at before, to add to.

    Returns:
        The keys that lead to an attribute, what it is, and how many tensors are in it that were not counted before.
    """
    modules, waiting = list[tuple[Inert, _Path]](), [(module, path)]
    while waiting:
        inner, keys = waiting.pop()
        if id(inner) not in visited:
            visited.add(id(inner))
            modules.append((inner, keys))
            below = [(value, (*keys, name)) for name, value in module_entries(inner) or () if isinstance(value, Inert)]
            waiting.extend(reversed(below if len(keys) < _DEPTH else []))
    return [
        ((*keys, name), kind, n_tensors)
        for inner, keys in modules
        for name, value, kind in module_attributes(inner)
        if (n_tensors := _count(value, listed, visited))
    ]


def _count(value: object, listed: Container[int], visited: set[int]) -> int:
    n_tensors, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        if not isinstance(inner, _HOLDERS) or id(inner) in visited or id(inner) in listed:
            continue
        visited.add(id(inner))
        n_tensors += isinstance(inner, torch.Tensor)
        waiting.extend(parts_of(inner))
    return n_tensors


def parts_of(value: object) -> Iterable[object]:
    """List what a container or an inert object holds; nothing for anything else.

    Args:
        value: anything that a torch file holds.
    """
    if isinstance(value, Inert):
        return (*value.args, *value.state, *value.elements, *(inner for _, inner in value.items))
    if isinstance(value, Mapping):
        return cast("Mapping[object, object]", value).values()
    return cast("Iterable[object]", value) if isinstance(value, (list, tuple, AbstractSet)) else ()
