"""The weights within what a training script saved beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.containers import is_beside
from specdiag.checkpoint.entries import Entry, describe_contents, describe_entry, is_matrix, list_entries, tensors_first
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.nested import Walk, joined
from specdiag.checkpoint.no_tensors import refuse_arrays
from specdiag.checkpoint.peeling import peel
from specdiag.checkpoint.training_state import refuse_training_state
from specdiag.errors import SourceError
from specdiag.text.names import listed

_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_NO_MODULES = ("model_state_dict", "state_dict")
"""Wrappers whose names no module has. They are looked for within another wrapper, too."""
_WEIGHT = re.compile(r"(.*[._])?(q?weight|kernel|embedding|weight_[gv]|original\d?)(_packed)?")
_TRAINED = "current_model_state"
_DEPTH = 8
_LISTED = 8
_TAKEN = "Took the weights under"


class SeveralModelsError(SourceError):
    """The file holds several models.

    Attributes:
        models: what they are, for a sentence.
    """

    models: str = ""


def find_weights(
    content: Mapping[str, object] | Mapping[object, object], label: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Find the one dictionary of tensors in a training checkpoint.

    Args:
        content: what torch.load gave; dictionaries and lists within the weights are joined with dots.
        label: the file, for messages.

    Returns:
        The tensors by name; notes on what was taken and what was left out.

    Raises:
        SourceError: it holds no tensors, several dictionaries of them of equal standing, two tensors of one name, or
            is the state of an optimizer.
    """
    entries = cast("Mapping[object, object]", content)
    refuse_training_state(entries, label)
    tensors, notes = _find(entries, label, ())
    return tensors, [*notes, *_averaged(entries, label)]


def _averaged(content: Mapping[object, object], label: str) -> list[str]:
    """Note that Lightning's WeightAveraging puts the average in the place of the trained weights."""
    if "state_dict" not in content or not isinstance(content.get(_TRAINED), Mapping):
        return []
    return [
        f"'state_dict' of {label} is the running average that Lightning's WeightAveraging keeps: part={_TRAINED} takes "
        "the trained weights."
    ]


def plain_tensors(content: Mapping[object, object], label: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Take the tensors of a state dict.

    Args:
        content: names and tensors; a module's extra state may be anything.
        label: where they come from, for messages.

    Returns:
        The tensors by name; a note on the other entries, which are left out.

    Raises:
        SourceError: two tensors get one name.
    """
    entries = list_entries(content, label)
    left = [describe_entry(entry) for entry in tensors_first(entries) if not entry.loose]
    notes = [f"Left out {listed(left, _LISTED)} of {label}, no tensors by themselves."] if left else []
    return _together([entry for entry in entries if entry.loose], label), notes


def _find(
    content: Mapping[object, object], label: str, path: tuple[object, ...]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    entries = list_entries(content, label)
    chosen = _choose(entries, label)
    chosen_ids = set(map(id, chosen))
    left = [describe_entry(entry) for entry in tensors_first(entries) if id(entry) not in chosen_ids]
    if chosen[0].loose:
        return _together(chosen, label), [f"Left out {listed(left, _LISTED)} of {label}."] if left else []
    return _unpacked(chosen[0], label, path, left)


def _together(loose: Sequence[Entry], label: str) -> dict[str, torch.Tensor]:
    walk = Walk(label)
    for entry in loose:
        walk.enter(entry.value, (entry.key,))
    return walk.tensors


def _unpacked(
    holder: Entry, label: str, path: tuple[object, ...], left: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Take the tensors of a dictionary, or of the state dict in it."""
    path = (*path, holder.key)
    value = holder.value
    inner = cast("Mapping[object, object]", value) if isinstance(value, Mapping) else {}
    if len(path) < _DEPTH and _wraps(inner, label):
        tensors, more = _find(inner, label, path)
        is_told = not left and any(note.startswith(_TAKEN) for note in more)
        return tensors, more if is_told else [_taken(path, label, left), *more]
    path, value, loose = peel(path, value, label)
    left = [*left, *loose, *(f"{brief(name)} ({kind})" for name, kind in holder.walk.left)]
    tensors = holder.walk.tensors if value is holder.value else Walk(label).enter(value).tensors
    return tensors, [_taken(path, label, left)]


def _taken(path: tuple[object, ...], label: str, left: Sequence[str]) -> str:
    rest = f" and left out {listed(left, _LISTED)}" if left else ""
    return f"{_TAKEN} '{brief(joined(path))}' of {label}{rest}."


def _wraps(content: Mapping[object, object], label: str) -> bool:
    """Tell whether a dictionary holds a state dict under a wrapper's name, and no tensors beside it."""
    if any(isinstance(content.get(name), Mapping) for name in _NO_MODULES):
        return True
    held = [key for key, value in content.items() if isinstance(value, (Mapping, torch.Tensor, Inert))]
    wrappers = [key for key in held if key in _WRAPPERS and isinstance(content[key], Mapping)]
    return len(wrappers) == 1 and not any(Walk(label).enter(content[key]).tensors for key in held if key != wrappers[0])


def _choose(entries: Sequence[Entry], label: str) -> list[Entry]:
    """Choose the entries that are the model: one dictionary, or all tensors that lie outside of dictionaries.

    Raises:
        SourceError: none is, or several may be.
    """
    loose = [entry for entry in entries if entry.loose]
    holders = [entry for entry in entries if entry.holder]
    wrappers = [[entry] for entry in holders if entry.name in _WRAPPERS]
    if wrappers:
        return _only(wrappers + ([loose] if _is_model(loose) else []), label)
    candidates = [[entry] for entry in holders if not is_beside(entry.name)]
    candidates += [loose] if loose else []
    if not candidates:
        refuse_arrays({entry.key: entry.value for entry in entries}, label)
        expected = "weights" if any(entry.walk.tensors or entry.walk.left for entry in entries) else "tensors"
        if not entries:
            raise SourceError(
                f"'{label}' is an empty dictionary: save the weights again, or give the file that has them"
            )
        raise SourceError(f"'{label}' holds no {expected}; its keys are {describe_contents(entries)}")
    models = [candidate for candidate in candidates if _is_model(candidate)]
    if len(models) == 1 and all(_n_matrices(models[0]) > _n_matrices(c) for c in candidates if c is not models[0]):
        return models[0]
    if models:
        return _only([*models, *(c for c in candidates if c not in models and _n_matrices(c))], label)
    return _only([candidate for candidate in candidates if _n_matrices(candidate)] or candidates, label)


def _only(candidates: Sequence[list[Entry]], label: str) -> list[Entry]:
    if len(candidates) > 1:
        descriptions = [
            describe_entry(entry)
            for candidate in candidates
            for entry in ([candidate[0]] if not candidate[0].loose else candidate[:2])
        ]
        example = next((f"part={brief(one[0].name)}" for one in candidates if not one[0].loose), "part=")
        models = listed(descriptions, _LISTED)
        error = SeveralModelsError(
            f"'{label}' holds {models}: pick one, such as with {example}, or save the one to analyse in a file of its "
            "own"
        )
        error.models = models
        raise error
    return candidates[0]


def _is_model(entries: Sequence[Entry]) -> bool:
    """Tell whether a matrix among the entries has a name as modules give to their weights."""
    return any(is_matrix(tensor) and _WEIGHT.fullmatch(name) for name, tensor in _tensors(entries))


def _n_matrices(entries: Sequence[Entry]) -> int:
    matrices = [(name, tensor) for name, tensor in _tensors(entries) if is_matrix(tensor)]
    return sum(tensor.is_floating_point() or _WEIGHT.fullmatch(name) is not None for name, tensor in matrices)


def _tensors(entries: Sequence[Entry]) -> list[tuple[str, torch.Tensor]]:
    return [
        (entry.name if entry.loose else name, tensor)
        for entry in entries
        for name, tensor in entry.walk.tensors.items()
    ]
