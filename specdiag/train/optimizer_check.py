"""Whether a saved optimizer is that of this model: torch loads moments into the wrong parameters without a word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.checkpoint.torch_load import load_torch
from specdiag.decay.live import live_parameters, untied
from specdiag.errors import SourceError

Moments = Mapping[str, Mapping[str, Any]]
"""Saved state by parameter name."""


def check_optimizer(path: Path, optimizer: Optimizer, model: nn.Module) -> tuple[str, Moments]:
    """Compare every saved state tensor with its parameter; say in a sentence what was compared, and give the state.

    Two matrices of one shape that changed places are not found here.

    Args:
        path: what the optimizer saved.
        optimizer: the new one, whose groups are in the order in which the state will be loaded.
        model: names the parameters.

    Raises:
        SourceError: groups, counts or shapes differ, or a parameter has no state.
    """
    saved: Any = load_torch(path, str(path))
    groups = [group["params"] for group in optimizer.param_groups]
    counts, expected = [len(group["params"]) for group in saved["param_groups"]], [len(group) for group in groups]
    if counts != expected:
        raise SourceError(
            f"{path} has groups of {counts} tensors and a Trainer makes {expected} for this model: it is another "
            "model's, or its script built the optimizer itself; continue it there, with AlphaDecayCallback"
        )
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    n_tensors = 0
    found: dict[str, Mapping[str, Any]] = {}
    for key, parameter in zip(keys, (p for group in groups for p in group), strict=True):
        n_tensors += _check_state(path, names[parameter], saved["state"].get(key), parameter)
        found[names[parameter]] = saved["state"][key]
    return f"{n_tensors} state tensors of {len(keys)} parameters have the shapes of their parameters.", found


def _check_state(path: Path, name: str, state: Mapping[str, Any] | None, parameter: torch.Tensor) -> int:
    if not state:
        raise SourceError(f"{path} has no state for {name}: its momentum would start from zero")
    n_tensors = 0
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            continue
        n_tensors += 1
        if value.shape != parameter.shape:
            raise SourceError(
                f"{path} is in another order: {name} has shape {tuple(parameter.shape)}, the saved {key} in its place "
                f"{tuple(value.shape)}"
            )
    return n_tensors
