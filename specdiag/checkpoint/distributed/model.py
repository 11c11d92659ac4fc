"""The weights among everything that a training run saved: the rest is an optimizer's state, or another model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch

from specdiag.checkpoint.distributed.metadata import SavedTensor
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.named_part import find_part, list_models
from specdiag.checkpoint.nested import spelled
from specdiag.checkpoint.state_dict import find_weights
from specdiag.checkpoint.training_state import MOMENTS, OPTIMIZER
from specdiag.errors import SourceError
from specdiag.text.counts import counted

_OPTIMIZER_KEY = re.compile(r"optim(izer)?s?\d*([_\-]\d+|[_\-]?(states?|dict)\d*)*")
_LONGEST_PATH = 1000
"""Keys between dots that may lead to one tensor."""
_OPTIMIZER_PARTS = ("state", "param_groups", "distributed")


class ChosenModel(NamedTuple):
    """The weights of one model among what was saved.

    Attributes:
        flat_names: for each name of a weight the one that it was saved under.
        notes: on what was taken and what was left out.
        is_part: whether the part that was asked for was found by its keys.
        models: as of a `Listing`.
    """

    flat_names: dict[str, str]
    notes: list[str]
    is_part: bool
    models: dict[str, int]


def choose_model(saved: Mapping[str, SavedTensor], where: str, part: str | None = None) -> ChosenModel:
    """Choose the tensors of the model, as is done within a file of torch.save.

    Args:
        saved: all tensors that were saved, by their flat names.
        where: the checkpoint, for messages.
        part: keys, joined with dots, that lead to one of several models; None for its only one.

    Raises:
        SourceError: there are no weights, or several models of equal standing.
    """
    keys = {flat: _segments(tensor.path, where) for flat, tensor in saved.items()}
    roots = _optimizer_roots(keys.values())
    weights = {flat: tensor for flat, tensor in saved.items() if not _below(keys[flat], roots)}
    n_left = len(saved) - len(weights)
    if not weights:
        contents = OPTIMIZER if saved else "a distributed checkpoint without tensors"
        raise SourceError(f"'{where}' is {contents}: give the folder of the weights")
    tree, flat_names = _tree(weights, where)
    found = None if part is None else find_part(tree, where, part)
    chosen, notes = found or find_weights(tree, where)
    left = [f"Left out {counted(n_left, 'tensor')} of {OPTIMIZER} in {where}."] if n_left else []
    return ChosenModel(
        flat_names={name: flat_names[id(tensor)] for name, tensor in chosen.items()},
        notes=[*notes, *left],
        is_part=found is not None,
        models={} if part is None or found else list_models(tree),
    )


def _segments(path: tuple[str | int, ...], where: str) -> tuple[str, ...]:
    """Split the keys that led to a tensor at their dots: some programs join them before they save."""
    if sum(key.count(".") + 1 for key in path if isinstance(key, str)) > _LONGEST_PATH:
        raise SourceError(f"'{where}' is damaged: more than {_LONGEST_PATH} keys lead to '{brief(str(path[-1]))}'")
    return tuple(segment for key in path for segment in spelled(key).split("."))


def _optimizer_roots(paths: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Find the prefixes below which optimizers keep their state."""
    roots: set[tuple[str, ...]] = set()
    for path in paths:
        for depth, segment in enumerate(path[:-1]):
            named = _OPTIMIZER_KEY.fullmatch(segment) and (depth == 0 or path[depth + 1] in _OPTIMIZER_PARTS)
            if named or (segment == "state" and path[-1] in MOMENTS):
                roots.add(path[: depth + 1])
                break
    return roots


def _below(path: tuple[str, ...], roots: set[tuple[str, ...]]) -> bool:
    return path[-1] in MOMENTS or any(path[:depth] in roots for depth in range(1, len(path)))


def _tree(weights: Mapping[str, SavedTensor], where: str) -> tuple[dict[object, object], dict[int, str]]:
    """Nest tensors without values as they were nested, and keep the flat name of each."""
    tree: dict[object, object] = {}
    flat_names: dict[int, str] = {}
    for flat, tensor in weights.items():
        node = tree
        for key in tensor.path[:-1]:
            inner = node.setdefault(spelled(key), dict[object, object]())
            if not isinstance(inner, dict):
                raise _two_things(flat, where)
            node = cast("dict[object, object]", inner)
        stand_in = _without_values(tensor)
        if node.setdefault(spelled(tensor.path[-1]), stand_in) is not stand_in:
            raise _two_things(flat, where)
        flat_names[id(stand_in)] = flat
    return tree, flat_names


def _without_values(tensor: SavedTensor) -> torch.Tensor:
    """Make a tensor of this shape on the device that stores nothing: for the choice its exact type does not matter."""
    kind = torch.float32 if tensor.dtype.is_floating_point else torch.int8
    return torch.empty(tensor.shape, dtype=kind, device="meta")


def _two_things(flat: str, where: str) -> SourceError:
    return SourceError(f"'{where}' is damaged: it holds '{brief(flat)}' and something else of the same name")
