"""Names the moments of a saved optimizer after the model's parameters, and loads them into a new optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import SourceError
from specdiag.live.parameters import live_parameters, untied
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.layouts import trainer_decayed
from specdiag.train.foreign.load import MOMENTS, SavedOptimizer
from specdiag.train.foreign.plausible import check_moment


def moments_of(
    saved: SavedOptimizer, assigned: Mapping[int, str], transposed: Collection[str] = ()
) -> dict[str, dict[str, torch.Tensor]]:
    """Collect the state of a saved optimizer by parameter name.

    Args:
        saved: the saved optimizer.
        assigned: parameter names by index.
        transposed: names of parameters that are transposed in the model.

    Returns:
        `step`, `exp_avg` and `exp_avg_sq` of each parameter.

    Raises:
        SourceError: a parameter lacks some of its state, its two moments have different shapes, or values
            that no moments have.
    """
    moments: dict[str, dict[str, torch.Tensor]] = {}
    for index, name in assigned.items():
        state = saved.state.get(index)
        if not state:
            raise SourceError(f"{saved.label} has no state for {name}: its momentum would start from zero")
        lost = next((key for key in ("step", *MOMENTS) if key not in state), None)
        if lost is not None:
            raise SourceError(f"{saved.label} has no {lost} for {name}: it is damaged")
        step, first, second = (_tensor(state[key], saved.label) for key in ("step", *MOMENTS))
        if first.shape != second.shape:
            raise SourceError(f"{saved.label} has moments of different shapes for {name}: it is damaged")
        for key, moment in zip(MOMENTS, (first, second), strict=True):
            check_moment(saved.label, name, key, moment)
        is_transposed = name in transposed
        moments[name] = {
            "step": step.detach().clone().float().reshape(()),
            **{
                key: (moment.T.contiguous() if is_transposed else moment)
                for key, moment in zip(MOMENTS, (first, second), strict=True)
            },
        }
    return moments


def load_moments(foreign: Foreign, optimizer: Optimizer, model: nn.Module) -> str:
    """Load the moments into a new optimizer by parameter name.

    Args:
        foreign: the checkpoint.
        optimizer: optimizer of the model, with groups in any order, such as a Trainer's. Its settings are not changed.
        model: model whose Parameters are named.

    Returns:
        A sentence on what was checked.

    Raises:
        SourceError: a moment is missing, left over or of another shape, or step counters differ; the optimizer is then
            unchanged.
    """
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    parameters: list[torch.Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    unnamed = sum(parameter not in names for parameter in parameters)
    if unnamed:
        raise SourceError(f"the optimizer has {unnamed} parameters that the model lacks: was it built over this model?")
    missing = [names[p] for p in parameters if names[p] not in foreign.moments]
    if missing:
        raise SourceError(f"the {foreign.kind} has no moments for {missing[0]} ({len(missing)} in all)")
    unused = foreign.moments.keys() - {names[p] for p in parameters}
    if unused:
        raise SourceError(f"the {foreign.kind} has moments of {min(unused)}, which is not trained here ({len(unused)})")
    for parameter in parameters:
        for key in MOMENTS:
            shape = tuple(foreign.moments[names[parameter]][key].shape)
            if shape != tuple(parameter.shape):
                raise SourceError(
                    f"{names[parameter]} has shape {tuple(parameter.shape)}, its {key} in the {foreign.kind} {shape}"
                )
    counters = {int(foreign.moments[names[p]]["step"]) for p in parameters}
    if len(counters) > 1:
        raise SourceError(f"the {foreign.kind} has parameters at steps {min(counters)} and {max(counters)}")
    content = optimizer.state_dict()
    indices = [index for group in content["param_groups"] for index in group["params"]]
    state = {
        index: {key: value.detach().clone() for key, value in foreign.moments[names[parameter]].items()}
        for index, parameter in zip(indices, parameters, strict=True)
    }
    cast("Any", optimizer).load_state_dict({**content, "state": state})
    return (
        f"{len(parameters) * len(MOMENTS)} moments of {len(parameters)} parameters, all at step {counters.pop()}, went "
        "to the parameters of their names and have their shapes."
    )


def decay_differences(saved: SavedOptimizer, assigned: Mapping[int, str], model: nn.Module) -> list[str]:
    """Describe parameters that a Trainer decays and the program did not, or the reverse.

    Args:
        saved: the saved optimizer.
        assigned: parameter names by index.
        model: model whose Parameters are named.

    Returns:
        Sentences; empty if there are no such parameters, or the program decayed none.
    """
    decayed = {
        assigned[index] for group in saved.groups if float(group.get("weight_decay", 0.0)) for index in group["params"]
    }
    if not decayed:
        return []
    ours = trainer_decayed(model)
    notes: list[str] = []
    for names, words in (
        (decayed - ours, "decayed there and not by a Trainer"),
        (set(assigned.values()) & ours - decayed, "not decayed there, and a Trainer does"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            notes.append(f"{min(names)}{more}: {words}.")
    return notes


def _tensor(value: Any, label: str) -> torch.Tensor:
    if isinstance(value, (int, float)):
        return torch.tensor(float(value))
    if not isinstance(value, torch.Tensor):
        raise SourceError(f"{label} has a {type(value).__name__} for a moment: it is damaged")
    return value
