"""AdaDecay's rule (arXiv 1907.08931) on any optimizer with decoupled or coupled decay: one factor for every weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.attaching import attach
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.live.parameters import live_parameters, untied
from specdiag.optim.optimizers.ada_decay import thetas
from specdiag.text import checks


class WeightwiseDecay:
    """Decays weight i by theta_i of its gradient within the layer, in place of the optimizer's own decay.

    decoupled: w_i <- (1 - lr weight_decay theta_i) w_i before the step;  coupled: g_i <- g_i + weight_decay theta_i w_i

    `AdaDecay` is the decoupled form with SGD, as in the paper. On Adam it is the baseline that AlphaDecay's tables call
    AdaDecay; the code of that paper has another rule (`ModuleAdaDecay`).
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], *, slope: float = 4.0) -> None:
        """Attach to a live optimizer.

        Args:
            model: names the parameters.
            optimizer: one or several.
            slope: the paper's alpha.

        Raises:
            UsageError: the slope is negative, or the optimizer follows no law of decay or has a rule already.
        """
        if not checks.number("slope", slope) >= 0:
            raise UsageError(f"slope={slope} must be at least 0; 4 is that of AlphaDecay's repository")
        unwrapped = unwrap_optimizers(optimizer)
        self._slope = slope
        own = {p: float(g["weight_decay"]) for each in unwrapped for g in each.param_groups for p in g["params"]}
        self._decays = {name: own[p] for name, p in untied(live_parameters(model)).items() if own.get(p)}
        self._detach = attach(unwrapped, "ratio", "WeightwiseDecay", lambda *_: 1.0, by_weight=self._factors)[1]

    @property
    def ratios(self) -> dict[str, float]:
        """Mean factor of each parameter that decays, about 1: a gradient of mean size has factor 1."""
        return dict.fromkeys(self._decays, 1.0)

    @property
    def decays(self) -> dict[str, float]:
        """The decay of a weight with factor 1, by parameter."""
        return dict(self._decays)

    def step(self, global_step: int) -> None:
        """Do nothing: gradients are compared inside the optimizer's step.

        Args:
            global_step: is not read; other rules need it.
        """

    def state_dict(self) -> Table:
        """Return the slope; nothing else is kept between steps."""
        return {"slope": self._slope}

    def load_state_dict(self, state: Table) -> None:
        """Check that a saved state is of this rule. The slope stays that of the constructor.

        Raises:
            UsageError: the state is of another rule.
        """
        if "slope" not in state:
            raise UsageError("the saved state is not of WeightwiseDecay")

    def detach(self) -> None:
        """Give the optimizer its own decay back."""
        self._detach()

    def _factors(self, parameter: torch.Tensor) -> torch.Tensor:
        return thetas(cast("torch.Tensor", parameter.grad).to(parameter.dtype), self._slope)
