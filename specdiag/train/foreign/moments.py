"""Moments under the names of the model's parameters, and into an optimizer of its own."""

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


def moments_of(
    saved: SavedOptimizer, assigned: Mapping[int, str], transposed: Collection[str] = ()
) -> dict[str, dict[str, torch.Tensor]]:
    """State by parameter name.

    Args:
        saved: the optimizer.
        assigned: parameter by index.
        transposed: parameters that are transposed in the model.

    Raises:
        SourceError: a parameter has no state, or moments of another shape than its own.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for index, name in assigned.items():
        state = saved.state.get(index)
        if not state:
            raise SourceError(f"{saved.label} has no state for {name}: its momentum would start from zero")
        step, first, second = (_tensor(state[key], saved.label) for key in ("step", *MOMENTS))
        if first.shape != second.shape:
            raise SourceError(f"{saved.label} has moments of different shapes for {name}: it is damaged")
        turn = name in transposed
        found[name] = {
            "step": step.detach().clone().float().reshape(()),
            **{
                key: (moment.T.contiguous() if turn else moment)
                for key, moment in zip(MOMENTS, (first, second), strict=True)
            },
        }
    return found


def load_moments(foreign: Foreign, optimizer: Optimizer, model: nn.Module) -> str:
    """Put the moments into a new optimizer over this model, by parameter name.

    Args:
        foreign: the checkpoint.
        optimizer: of this model, in groups of any order, such as a Trainer's. Its hyper-parameters are left alone.
        model: names the parameters.

    Returns:
        A sentence that says what was checked.

    Raises:
        SourceError: a moment is missing, left over, of another shape, or the step counters differ. The optimizer is
            as it was.
    """
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    held: list[torch.Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    unnamed = sum(parameter not in names for parameter in held)
    if unnamed:
        raise SourceError(f"the optimizer has {unnamed} parameters that the model lacks: was it built over this model?")
    missing = [names[p] for p in held if names[p] not in foreign.moments]
    if missing:
        raise SourceError(f"the {foreign.kind} has no moments for {missing[0]} ({len(missing)} in all)")
    over = foreign.moments.keys() - {names[p] for p in held}
    if over:
        raise SourceError(f"the {foreign.kind} has moments of {min(over)}, which is not trained here ({len(over)})")
    for parameter in held:
        for key in MOMENTS:
            shape = tuple(foreign.moments[names[parameter]][key].shape)
            if shape != tuple(parameter.shape):
                raise SourceError(
                    f"{names[parameter]} has shape {tuple(parameter.shape)}, its {key} in the {foreign.kind} {shape}"
                )
    counters = {int(foreign.moments[names[p]]["step"]) for p in held}
    if len(counters) > 1:
        raise SourceError(f"the {foreign.kind} has parameters at steps {min(counters)} and {max(counters)}")
    content = optimizer.state_dict()
    indices = [index for group in content["param_groups"] for index in group["params"]]
    state = {
        index: {key: value.detach().clone() for key, value in foreign.moments[names[parameter]].items()}
        for index, parameter in zip(indices, held, strict=True)
    }
    cast("Any", optimizer).load_state_dict({**content, "state": state})
    return (
        f"{len(held) * len(MOMENTS)} moments of {len(held)} parameters, all at step {counters.pop()}, went to the "
        "parameters of their names and have their shapes."
    )


def decay_said(saved: SavedOptimizer, assigned: Mapping[int, str], model: nn.Module) -> list[str]:
    """Which parameters a Trainer decays and the program did not, or the reverse."""
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
