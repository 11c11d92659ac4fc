"""Removing the prefixes that training wrappers put before the names of a network's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from specdiag.architecture.wrapper_names import WRAPPERS, without_wrappers
from specdiag.checkpoint.parametrised import compute_parametrised
from specdiag.checkpoint.part_selection import choose_part, refuse_unknown_part
from specdiag.checkpoint.scanned import split_scanned
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.training_state import mark_moments
from specdiag.checkpoint.twins import mark_averages
from specdiag.errors import SourceError

_PARALLEL = "module."
_COUNTER = "n_averaged"
"""The tensor that torch's AveragedModel keeps beside its module."""


def unwrap(
    tensors: Sequence[StoredTensor], where: str, part: str | None = None, models: Mapping[str, int] | None = None
) -> tuple[list[StoredTensor], list[str]]:
    """Take off the segments of wrappers anywhere, and `module.` (DataParallel) where all names have it.

    Moments of an optimizer and running averages that lie under names of their own among the weights are left out,
    weights take the place of the Parameters that they are computed from, and layers that of tensors that hold several.

    Args:
        tensors: all tensors of a checkpoint.
        where: the checkpoint, for messages.
        part: the prefix of the model to take; None for all of them.
        models: those that the checkpoint keeps in dictionaries of their own, with their numbers of tensors, for the
            message where there is no such part.

    Returns:
        The tensors under their new names, and notes on what was taken off and left out.

    Raises:
        UsageError: there is no such part.
        SourceError: two names become one, all are an optimizer's, or they are two models.
    """
    renamed, notes = _renamed(tensors, where)
    if part is not None:
        chosen = choose_part(renamed, part, where) or choose_part(tensors, part, where)
        if chosen is None:
            raise refuse_unknown_part(renamed, part, where, models or {})
        renamed, notes = _renamed(chosen[0], where)
        notes = [chosen[1], *notes]
    weights, left = mark_moments(renamed, where)
    weights, copies = mark_averages(weights, where)
    weights, computed = compute_parametrised(weights)
    weights, layers = split_scanned(weights)
    return weights, [*notes, *left, *copies, *computed, *layers]


def _renamed(tensors: Sequence[StoredTensor], where: str) -> tuple[list[StoredTensor], list[str]]:
    names = [without_wrappers(tensor.name) for tensor in tensors]
    there = {
        segment
        for name, tensor in zip(names, tensors, strict=True)
        if name != tensor.name
        for segment in tensor.name.split(".")
    }
    prefixes = [f"{wrapper}." for wrapper in WRAPPERS if wrapper in there]
    while _all_parallel(names):
        names = [name.removeprefix(_PARALLEL) for name in names]
        prefixes.append(_PARALLEL)
    if not prefixes:
        return list(tensors), []
    twice = duplicate(names)
    if twice is not None:
        raise SourceError(f"{where} holds '{twice}' with and without a wrapper's prefix: save the plain model")
    notes = [f"Took the wrapper prefix '{prefix}' off the names." for prefix in dict.fromkeys(prefixes)]
    return [replace(tensor, name=name) for tensor, name in zip(tensors, names, strict=True)], notes


def _all_parallel(names: Sequence[str]) -> bool:
    inside = [name for name in names if name != _COUNTER]
    return bool(inside) and all(name.startswith(_PARALLEL) and name != _PARALLEL for name in inside)


def duplicate(names: Iterable[str]) -> str | None:
    """Find the first name that comes a second time; None where all differ."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
