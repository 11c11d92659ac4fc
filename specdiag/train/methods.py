"""The optimizer that a recipe names, from the one registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from specdiag.optim import METHODS, optimizers
from specdiag.optim.optimizers.combined import Combined
from specdiag.train.recipe import Recipe

_FROM_SETTINGS = {
    "lr": "learning_rate", "weight_decay": "weight_decay", "beta1": "adam_beta1", "beta2": "adam_beta2",
    "eps": "adam_epsilon",
}  # fmt: skip
"""Options of the registry that the Trainer's arguments hold too; what a recipe does not set is the method's default."""


def optimizer_maker(recipe: Recipe) -> Callable[[nn.Module], Optimizer] | None:
    """Makes the optimizer of a recipe for a model; None where the Trainer makes its own."""
    if not recipe.optimizer:
        return None

    def make(model: nn.Module) -> Optimizer:
        known = METHODS[recipe.optimizer].defaults if recipe.optimizer in METHODS else ()
        held: dict[str, Any] = {
            ours: recipe.settings[theirs]
            for ours, theirs in _FROM_SETTINGS.items()
            if ours in known and theirs in recipe.settings
        }
        made = optimizers(recipe.optimizer, model, **{**held, **recipe.optimizer_options})
        return made[0] if len(made) == 1 else Combined(made)

    return make
