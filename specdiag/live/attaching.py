"""Factors attached to live optimizers: to all of them, or to none where one is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.decay_step import ByWeight
from specdiag.live.multipliers import ATTRIBUTE, After, Factor, Kind, Multipliers
from specdiag.live.optimizers import PLANNED, stepped_optimizers, unwrap_optimizers


def attach(
    optimizers: object,
    kind: Kind,
    owner: str,
    factor: Factor,
    *,
    replace: bool = False,
    after: After | None = None,
    by_weight: ByWeight | None = None,
) -> tuple[list[Multipliers], Callable[[], None]]:
    """Multiply the decay or the learning rate of live optimizers in their steps: of all, or of none if one refuses.

    Args:
        optimizers: one or several, as `unwrap_optimizers` takes them.
        kind: see `Kind`; an optimizer has one factor of each.
        owner: name of the class or method that adds it, for messages.
        factor: called for every Parameter at every step, for factors on the decay only where there is one.
        replace: replace the former factor of the same owner.
        after: called after each step of each optimizer.
        by_weight: called for every Parameter with decay and a gradient, at every step.

    Returns:
        The multipliers of each optimizer, and a function that removes this factor from all.

    Raises:
        UsageError: one of the optimizers cannot take a changing decay or learning rate, or has a factor of this kind.
    """
    attached: list[tuple[Optimizer, Multipliers]] = []

    def detach() -> None:
        while attached:
            optimizer, multipliers = attached.pop()
            multipliers.remove(kind, optimizer)

    try:
        for optimizer in unwrap_optimizers(optimizers, "lr" if kind == "rate" else "decay"):
            if kind == "ratio" and any(PLANNED in group for group in optimizer.param_groups):
                raise UsageError(
                    f"the groups of this optimizer were made by plan.param_groups, and {owner} would multiply their "
                    "ratios once more: build the optimizer with plain groups, or leave this out"
                )
            multipliers = Multipliers.of(optimizer)
            multipliers.add(kind, owner, factor, optimizer, replace=replace, after=after, by_weight=by_weight)
            attached.append((optimizer, multipliers))
    except UsageError:
        detach()
        raise
    return [multipliers for _, multipliers in attached], detach


def decays_in_force(optimizer: Optimizer) -> dict[torch.Tensor, float]:
    """Return the weight decay of each Parameter in a step now, with the factors of whatever is attached.

    Args:
        optimizer: a torch optimizer, accelerate's wrapper of one, or a container of several; within its step or not.

    Returns:
        Decays by Parameter; 0 where a group has none, or a rule gives each weight one of its own.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        return decays_in_force(inner)
    found: dict[torch.Tensor, float] = {}
    for each in stepped_optimizers(optimizer):
        multipliers = vars(each).get(ATTRIBUTE)
        if multipliers is not None:
            found |= multipliers.decays(each)
        else:
            found |= {p: float(g.get("weight_decay", 0.0)) for g in each.param_groups for p in g["params"]}
    return found


def rates_in_force(optimizer: Optimizer) -> dict[torch.Tensor, float]:
    """Return the factor on the learning rate of each Parameter in a step now, 1 where nothing is attached.

    Args:
        optimizer: a torch optimizer, accelerate's wrapper of one, or a container of several; within its step or not.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        return rates_in_force(inner)
    found: dict[torch.Tensor, float] = {}
    for each in stepped_optimizers(optimizer):
        multipliers = vars(each).get(ATTRIBUTE)
        plain = {p: 1.0 for group in each.param_groups for p in group["params"]}
        found |= plain if multipliers is None else multipliers.rates(each)
    return found
