"""Records of optimizers: what a method is, and what one class of optimizers does to a Parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.dynamics.updates import Optimizer as Simulated
from specdiag.live.parameters import ParamGroup

Options = Mapping[str, object]
"""Options of a method by name."""

DecayKind = Literal["decoupled", "coupled", "by weight"]
"""`decoupled` decay removes lr x decay of all weights, `coupled` decay is added to the gradient, and decay `by weight`
removes a different fraction of each weight."""


def no_model(group: ParamGroup, shape: torch.Size) -> Simulated | None:
    """Return None: no model of `specdiag.simulate` covers the optimizer.

    Args:
        group: is not read.
        shape: is not read.
    """


def product(group: ParamGroup) -> float:
    """Return lr x weight decay, the fraction of the weights that decoupled decay removes in a step.

    Args:
        group: with `lr`; a missing `weight_decay` counts as 0.
    """
    return float(group["lr"]) * float(group.get("weight_decay", 0.0))


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """Update that a class of optimizers makes to a Parameter.

    Attributes:
        optimizer: the class, subclasses included; the bare name of a class that only other packages have.
        decay: kind of its decay, unless a group has `decoupled_weight_decay`.
        simulated: (group, shape of a Parameter) -> name in `specdiag.simulate`; None where no model covers it.
        removed: (group) -> fraction of the weights that decoupled decay removes in a step.
    """

    optimizer: type[Optimizer] | str
    decay: DecayKind
    simulated: Callable[[ParamGroup, torch.Size], Simulated | None] = no_model
    removed: Callable[[ParamGroup], float] = product

    @property
    def name(self) -> str:
        """Name of the class."""
        return self.optimizer if isinstance(self.optimizer, str) else self.optimizer.__name__


@dataclass(frozen=True, slots=True)
class Method:
    """Entry of the registry.

    Attributes:
        formula: the step; g is the gradient, L the decay (lambda), w the weights, u Adam's direction, a = 1 - momentum.
        source: paper and code that the method follows.
        disagreements: points on which paper, code or their readers differ, and the choice made here.
        defaults: every option of the method, with its default.
        build: (model, a value for every option) -> optimizers.
        updates: update rules of the classes that `build` makes.
    """

    formula: str
    source: str
    disagreements: str
    defaults: Options
    build: Callable[[nn.Module, Options], list[Optimizer]]
    updates: tuple[UpdateRule, ...]
