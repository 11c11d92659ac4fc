"""AWD's rule (arXiv 2210.00094) on any optimizer: all decay in proportion to the gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.attaching import attach
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.live.parameters import live_parameters, untied
from specdiag.optim.optimizers.awd import averaged, gradient_ratio


class GradientRatioDecay:
    """Multiplies the decay of every parameter by one number, the averaged |g|/|w| of all of them.

    average <- 0.1 average + 0.9 |g|/|w|;  lambda_t = weight_decay average

    `AWD` is this with SGD, as in the paper. On Adam it is the baseline of AlphaDecay's tables; how that paper's
    launcher scales the decay with it is not published. The base `weight_decay` is decay over gradient, and so differs
    from the usual values. Gradients are those that the optimizer gets, after clipping.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> None:
        """Attach to a live optimizer.

        Args:
            model: names the parameters.
            optimizer: one or several.

        Raises:
            UsageError: the optimizer cannot take a changing decay, or has a rule already.
        """
        unwrapped = unwrap_optimizers(optimizer)
        decays = {
            p: group["weight_decay"] for each in unwrapped for group in each.param_groups for p in group["params"]
        }
        self._parameters = list(decays)  # in the groups' order, on which the last bits of their norm depend
        self._names = [name for name, p in untied(live_parameters(model)).items() if decays.get(p)]
        self._average = 0.0
        self._detach = attach(unwrapped, "ratio", "GradientRatioDecay", lambda *_: self._average)[1]

    @property
    def ratios(self) -> dict[str, float]:
        """Current factor on the decay of each parameter: the same for all."""
        return dict.fromkeys(self._names, self._average)

    def step(self, global_step: int) -> None:
        """Add this step's gradients to the average. Call it after backward and clipping, before the optimizer's step.

        Args:
            global_step: is not read; other rules need it.
        """
        del global_step
        self._average = averaged(self._average, gradient_ratio(self._parameters))

    def state_dict(self) -> Table:
        """Return the average. It can be written as JSON."""
        return {"average": self._average}

    def load_state_dict(self, state: Table) -> None:
        """Continue with a saved average.

        Raises:
            UsageError: the state has no average.
        """
        if not isinstance(state.get("average"), float):
            raise UsageError("the saved state of GradientRatioDecay has no average: it is another rule's")
        self._average = state["average"]

    def detach(self) -> None:
        """Remove the factor from the optimizer."""
        self._detach()
