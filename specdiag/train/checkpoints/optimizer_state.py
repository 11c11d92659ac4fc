"""Checks that a saved optimizer fits the model, because torch loads moments into wrong parameters without an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.checkpoint.torch_load import load_torch
from specdiag.errors import SourceError
from specdiag.live.parameters import ParamGroup, live_parameters, untied
from specdiag.train.checkpoints.finite import check_plain
from specdiag.train.foreign.plausible import check_options

Moments = Mapping[str, Mapping[str, object]]
"""Saved state by parameter name."""

_OF_ADAM = ("step", "exp_avg", "exp_avg_sq")
_MOST_STEPS = 1 << 53
"""Bound of a step counter: it may be a float, which cannot count further."""


def read_optimizer(path: Path) -> tuple[list[ParamGroup], Mapping[object, Mapping[str, object]]]:
    """Read the file of an optimizer.

    Args:
        path: file of torch.save.

    Returns:
        Parameter groups, and state by parameter index, as torch saves them.

    Raises:
        SourceError: the file cannot be opened, has another layout, or a number of its groups is not finite.
    """
    saved: Any = load_torch(path, str(path))
    groups, state = (saved.get(name) if isinstance(saved, Mapping) else None for name in ("param_groups", "state"))
    if not isinstance(groups, list) or not isinstance(state, Mapping):
        raise SourceError(f"{path} holds no state of an optimizer (param_groups and state): name another checkpoint")
    groups, state = cast("list[Any]", groups), cast("Mapping[Any, Any]", state)
    if not all(isinstance(g, Mapping) and isinstance(cast("Any", g).get("params"), list) for g in groups):
        raise SourceError(f"{path} has parameter groups without parameters: name another checkpoint")
    bad_key = next((key for key, own in state.items() if not isinstance(own, Mapping)), None)
    if bad_key is not None:
        kind = type(state[bad_key]).__name__
        raise SourceError(f"{path} has a {kind} for the state of {bad_key!s:.40}: it is damaged")
    check_plain(groups, str(path))
    return cast("list[ParamGroup]", groups), cast("Mapping[object, Mapping[str, object]]", state)


def step_counters(path: Path) -> set[int]:
    """Return the distinct step counters of the parameters in the file of an optimizer.

    Raises:
        SourceError: the file cannot be used, as for `read_optimizer`, or a counter is no number of steps.
    """
    counters: set[int] = set()
    for own in read_optimizer(path)[1].values():
        if "step" in own:
            counters.add(_count(own["step"], path))
    return counters


def _count(value: Any, path: Path) -> int:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if not isinstance(value, (int, float)) or not 0 <= value < _MOST_STEPS or value != int(value):
        raise SourceError(f"{path} has a step counter {value!s:.40}, which counts no steps: it is damaged")
    return int(value)


def check_optimizer(path: Path, optimizer: Optimizer, model: nn.Module) -> tuple[str, Moments]:
    """Compare the shape of every saved state tensor with its parameter.

    Two matrices of the same shape that are exchanged are not found here.

    Args:
        path: file of the saved optimizer.
        optimizer: new optimizer, whose groups are in the order in which the state will be loaded.
        model: model whose Parameters are named.

    Returns:
        A sentence on what was compared, and the saved state by parameter name.

    Raises:
        SourceError: groups, counts or shapes differ, a parameter has no state, or Adam would get options that it
            refuses or lack a moment.
    """
    saved_groups, state = read_optimizer(path)
    is_adam = isinstance(optimizer, torch.optim.Adam)
    if is_adam:
        check_options(str(path), saved_groups)
    groups = [group["params"] for group in optimizer.param_groups]
    counts, expected = [len(group["params"]) for group in saved_groups], [len(group) for group in groups]
    if counts != expected:
        raise SourceError(
            f"{path} has groups of {counts} tensors and a Trainer makes {expected} for this model: it is another "
            "model's, or its script built the optimizer itself; continue it there, with AlphaDecayCallback"
        )
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    keys = [key for group in saved_groups for key in group["params"]]
    n_tensors = 0
    moments: dict[str, Mapping[str, object]] = {}
    for key, parameter in zip(keys, (p for group in groups for p in group), strict=True):
        own = _state_of(state, key)
        n_tensors += _check_state(path, names[parameter], own, parameter)
        if is_adam and (lost := [entry for entry in _OF_ADAM if entry not in (own or {})]):
            raise SourceError(f"{path} has no {lost[0]} for {names[parameter]}, which Adam needs: it is damaged")
        moments[names[parameter]] = state[key]
    return f"{n_tensors} state tensors of {len(keys)} parameters have the shapes of their parameters.", moments


def _state_of(state: Mapping[Any, Mapping[str, Any]], key: Any) -> Mapping[str, Any] | None:
    return state.get(key) if isinstance(key, (int, str)) else None


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
