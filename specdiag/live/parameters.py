"""The Parameters of a live model, under the names that its checkpoint has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from specdiag.architecture.wrapper_names import without_wrappers
from specdiag.files import Table

ParamGroup = dict[str, Any]
"""A parameter group of torch."""
_PARALLEL = "module."


def live_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every Parameter by its name without wrappers' prefixes (DDP, torch.compile), in definition order.

    Args:
        model: a module, wrapped or not.

    Returns:
        Parameters by name. A tied Parameter comes under each of its names.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    names = [without_wrappers(name) for name, _ in named]
    while names and all(name.startswith(_PARALLEL) for name in names):
        names = [name.removeprefix(_PARALLEL) for name in names]
    return {name: parameter for name, (_, parameter) in zip(names, named, strict=True)}


def untied(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return each Parameter once, under its first name.

    Args:
        parameters: by name; a tied Parameter comes under each of its names, as in `live_parameters`.

    Returns:
        Parameters by name, in the order of `parameters`.
    """
    seen: set[torch.Tensor] = set()
    first: dict[str, nn.Parameter] = {}
    for name, parameter in parameters.items():
        if parameter not in seen:
            seen.add(parameter)
            first[name] = parameter
    return first


def live_config(model: nn.Module) -> Table:
    """Return the model's config as config.json would hold it; empty for a model without `config.to_dict`.

    Args:
        model: a module. Wrappers are looked through, and modules that hold one model and no other Parameter, such as a
            LightningModule.

    Returns:
        The content of config.json.
    """
    inner_model: nn.Module | None = model
    while inner_model is not None:
        to_dict = getattr(getattr(inner_model, "config", None), "to_dict", None)
        if callable(to_dict):
            return cast("Table", to_dict())
        inner = getattr(inner_model, "module", None)
        inner_model = inner if isinstance(inner, nn.Module) else _only_child(inner_model)
    return {}


def _only_child(model: nn.Module) -> nn.Module | None:
    """The child that holds all Parameters, where one does."""
    holding = [child for child in model.children() if next(child.parameters(), None) is not None]
    return holding[0] if len(holding) == 1 and next(model.parameters(recurse=False), None) is None else None
