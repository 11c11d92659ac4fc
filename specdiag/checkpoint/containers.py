"""Dictionaries around a state dict: which of their entries a run keeps beside the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch

from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.modules import module_entries
from specdiag.checkpoint.training_state import MOMENTS, OPTIMIZER
from specdiag.checkpoint.twins import is_average

GRADIENTS = "gradients"
AVERAGE = "an averaged or lagging copy"
_BESIDE = re.compile(
    r"(.*[_.\-])?(optim\w*|opt|sched\w*|lr_sched\w*|scaler|rng\w*|random_states?|history|metrics?|config|args|hparams|"
    r"hyper_?parameters|loops?|callbacks?)([_.\-](states?|dict|\d+))*"
)
_OPTIMIZER = re.compile(r"(.*[_.\-])?(optim\w*|opt)([_.\-](states?|dict|\d+))*")
_GRADIENTS = re.compile(r"(.*[_.\-])?(grads?|gradients?)([_.\-](dict|state_dict))?")
_MOMENTS = frozenset(("m", "v", "mu", "nu", "momentum", "moments", "velocity", *MOMENTS))
"""Names of an optimizer's copies. Those that modules may have, too, count only for copies of what lies beside them."""
_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
_LONGEST_KEY = 100
"""Characters of the longest key of a file that is compared with names in use."""
_DEPTH = 2


def is_beside(name: str) -> bool:
    """Tell by its name what is no model: an optimizer's state, gradients, settings, metrics."""
    lower = name.lower()
    if len(name) > _LONGEST_KEY:
        return False
    return bool(_BESIDE.fullmatch(lower) or _GRADIENTS.fullmatch(lower)) or lower in MOMENTS


def is_state_dict(value: object) -> bool:
    """Tell a module's state dict: it has tensors under names with dots. A module that was saved whole is one too."""
    if isinstance(value, Inert):
        return module_entries(value) is not None
    return isinstance(value, Mapping) and any(
        isinstance(tensor, torch.Tensor) and "." in _text(key)
        for key, tensor in cast("Mapping[object, object]", value).items()
    )


def leads_to_state_dict(value: object, depth: int = _DEPTH) -> bool:
    """Tell whether a value is a state dict, or a dictionary around one.

    Args:
        value: anything that a torch file holds.
        depth: how many dictionaries may lie around it.
    """
    if is_state_dict(value) or not isinstance(value, Mapping):
        return is_state_dict(value)
    inner = cast("Mapping[object, object]", value).values()
    return depth > 0 and any(leads_to_state_dict(one, depth - 1) for one in inner)


def find_beside(entries: Mapping[object, object]) -> dict[object, str]:
    """Find the entries that are no part of the model, in a dictionary that holds one.

    Args:
        entries: a dictionary, at any depth of a file.

    Returns:
        The kind of each, for messages, by its key; nothing for a state dict, or where no model is left beside them.
    """
    if not any(_tells(_text(key)) for key in entries) or is_state_dict(entries):
        return {}
    inner = {key: value for key, value in entries.items() if isinstance(value, (Mapping, Inert, list, tuple))}
    others = [key for key in inner if not is_beside(_text(key))]
    if len(inner) < 2 or not others:
        return {}
    is_container = any(leads_to_state_dict(inner[key]) for key in others)
    found = {key: kind for key in inner if (kind := _kind(_text(key), is_container=is_container)) is not None}
    left = [key for key in inner if key not in found]
    return found | {key: kind for key in left if (kind := _copy(key, inner, left)) is not None}


def _tells(name: str) -> bool:
    return len(name) <= _LONGEST_KEY and (is_beside(name) or name.lower() in _MOMENTS or is_average(name))


def _kind(name: str, *, is_container: bool) -> str | None:
    """Name what an entry is. Names that modules have, too, count beside a state dict alone."""
    lower = name.lower()
    if len(name) > _LONGEST_KEY:
        return None
    if _OPTIMIZER.fullmatch(lower) or lower in MOMENTS:
        return OPTIMIZER
    if _GRADIENTS.fullmatch(lower):
        return GRADIENTS
    return "no weights" if is_container and _BESIDE.fullmatch(lower) else None


def _copy(key: object, entries: Mapping[object, object], left: list[object]) -> str | None:
    """Name a copy of a state dict that lies beside it: an optimizer's moment, or an average."""
    name = _text(key).lower()
    if len(name) > _LONGEST_KEY:
        return None
    kind = OPTIMIZER if name in _MOMENTS and not is_average(name) else AVERAGE if is_average(name) else None
    if kind is None or not (names := _names(entries[key])):
        return None
    others = (other for other in left if other is not key and not is_average(_text(other)))
    return kind if any(names <= _names(entries[other]) for other in others) else None


def are_twins(one: object, other: object) -> bool:
    """Tell two state dicts of one network: every tensor of either has its like in the other.

    Args:
        one: an entry of a dictionary.
        other: another one. The same object is no twin of itself.
    """
    names = _names(one)
    return one is not other and bool(names) and names == _names(other)


def _names(value: object) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the matrices of a state dict, without a wrapper's prefix."""
    if not isinstance(value, Mapping):
        return frozenset()
    tensors = cast("Mapping[object, object]", value).items()
    return frozenset(
        (_PREFIX.sub("", _text(key)), tuple(tensor.shape))
        for key, tensor in tensors
        if isinstance(tensor, torch.Tensor) and not tensor.is_nested and tensor.dim() > 1
    )


def _text(key: object) -> str:
    return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else key if isinstance(key, str) else ""
