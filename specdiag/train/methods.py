"""Makes the optimizer that a recipe names."""

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
"""Options of optimizers, and the arguments of the Trainer that set them."""


def optimizer_maker(recipe: Recipe) -> Callable[[nn.Module], Optimizer] | None:
    """Return a function that makes the optimizer of a recipe for a model.

    Args:
        recipe: recipe with the optimizer's name, its options and the settings.

    Returns:
        None if the recipe leaves the optimizer to the Trainer.
    """
    if not recipe.optimizer:
        return None

    def make(model: nn.Module) -> Optimizer:
        options = METHODS[recipe.optimizer].defaults if recipe.optimizer in METHODS else ()
        from_settings: dict[str, Any] = {
            ours: recipe.settings[theirs]
            for ours, theirs in _FROM_SETTINGS.items()
            if ours in options and theirs in recipe.settings
        }
        parts = optimizers(recipe.optimizer, model, **{**from_settings, **recipe.optimizer_options})
        return parts[0] if len(parts) == 1 else Combined(parts)

    return make
