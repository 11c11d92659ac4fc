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
"""Decay takes lr x decay off all weights, goes through the gradient, or is of a size that the step finds."""


def no_model(group: ParamGroup, shape: torch.Size) -> Simulated | None:
    """Return None: no model of `specdiag.simulate` covers the optimizer."""


def product(group: ParamGroup) -> float:
    """Return lr x weight decay, the fraction of the weights that decoupled decay takes off in a step."""
    return float(group["lr"]) * float(group.get("weight_decay", 0.0))


@dataclass(frozen=True, slots=True)
class UpdateRule:
    """Update that a class of optimizers makes to a Parameter.

    Attributes:
        optimizer: the class, subclasses included; the bare name of a class that only other packages have.
        decay: kind of its decay, unless a group has `decoupled_weight_decay`.
        simulated: from a group and a Parameter's shape, its name in `specdiag.simulate`; None where no model covers it.
        removed: fraction of the weights that decoupled decay takes off in a step, from a group.
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
        source: paper and code that it follows.
        disagreements: where these, or their readers, differ, and what is done here.
        defaults: the options that it takes, all of them.
        build: the optimizers for a model, from a value for every option.
        updates: of the classes that `build` makes.
    """

    formula: str
    source: str
    disagreements: str
    defaults: Options
    build: Callable[[nn.Module, Options], list[Optimizer]]
    updates: tuple[UpdateRule, ...]
