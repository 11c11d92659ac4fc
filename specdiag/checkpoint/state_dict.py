"""The weights within what a training script saved beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from specdiag.errors import SourceError

_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_BESIDE_WEIGHTS = re.compile(r".*(optim|sched|scaler|rng|random|history|metric|config|args|hyper|loop|callback).*")
_DEPTH = 16  # of nested dictionaries; a pickle may nest one in itself


def find_weights(content: Mapping[Any, Any], label: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The one dictionary of tensors in a training checkpoint, and notes on what was taken and left.

    Args:
        content: what torch.load gave; dictionaries within the weights are joined with dots.
        label: the file, for messages.

    Raises:
        SourceError: it holds no tensors, or several dictionaries of them of equal standing.
    """
    own = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if any(value.dim() > 1 for value in own.values()):
        return _named(own), _rest(label, [name for name in content if name not in own])
    found = {str(name): flat for name, value in content.items() if (flat := dict(_flatten(value)))}
    holders = [name for name in found if name in _WRAPPERS]
    holders = holders or [name for name in found if not _BESIDE_WEIGHTS.fullmatch(name.lower()) and name not in own]
    if len(holders) > 1:
        listed = ", ".join(f"'{name}'" for name in holders)
        raise SourceError(f"'{label}' holds tensors under {listed}: save the one to analyse in a file of its own")
    if holders:
        rest = [name for name in content if name != holders[0]]
        left = f" and left out {_listed(rest)}" if rest else ""
        return found[holders[0]], [f"Took the weights under '{holders[0]}' of {label}{left}."]
    if not own:
        raise SourceError(f"'{label}' holds no tensors; its keys are {_listed(list(content)) or 'none'}")
    return _named(own), _rest(label, [name for name in content if name not in own])


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield ".".join(path), value
    elif isinstance(value, Mapping) and len(path) < _DEPTH:
        for name, inner in cast("Mapping[Any, Any]", value).items():
            yield from _flatten(inner, (*path, str(name)))


def _named(tensors: Mapping[Any, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(name): tensor for name, tensor in tensors.items()}


def _rest(label: str, names: list[Any]) -> list[str]:
    return [f"Left out {_listed(names)} of {label}, no tensors."] if names else []


def _listed(names: list[Any]) -> str:
    return ", ".join(str(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
