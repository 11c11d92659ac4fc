"""AdaDecay (Nakamura and Hong 2019, arXiv 1907.08931): weights with larger gradients decay more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from specdiag.optim.optimizers.awd import check_numbers

_EPS = 1e-8


class AdaDecay(SGD):
    """SGD that decays weight i by theta_i: 1 for a gradient of usual size, up to 2 for a large one, down to 0.

    z_i = (|g_i| - mean |g|)/std |g|;  theta_i = 2/(1 + exp(-slope z_i))
    w_i <- w_i - lr g_i - lr weight_decay theta_i w_i

    Mean and (population) standard deviation are those of each parameter tensor, the paper's layer. The decay does not
    enter the momentum. Where all gradients are equal theta is 1.
    """

    def __init__(
        self, params: ParamsT, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4, *, slope: float = 4.0
    ) -> None:
        """Take the arguments of SGD, and a slope.

        Args:
            params: parameters or groups.
            lr: learning rate.
            momentum: of SGD.
            weight_decay: lambda, the decay of a weight with theta 1.
            slope: the paper's alpha. 4 is the default of AlphaDecay's repository; the paper's value is unconfirmed.

        Raises:
            UsageError: a number is negative.
        """
        check_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay, slope=slope)
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        for group in self.param_groups:
            group.setdefault("slope", slope)
        self.defaults["slope"] = slope

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make a step. The closure is called once, before the gradients are compared."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            rate = float(group["lr"]) * group["weight_decay"]
            for p in group["params"]:
                if rate and p.grad is not None:
                    p.mul_(1 - rate * thetas(p.grad.to(p.dtype), group["slope"]))
            group["weight_decay"] = 0.0
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def thetas(gradient: torch.Tensor, slope: float = 4.0) -> torch.Tensor:
    """Compute theta of every weight of a layer.

    Args:
        gradient: of the layer, of any shape.
        slope: the paper's alpha.

    Returns:
        theta in [0, 2], of the gradient's shape.
    """
    size = gradient.abs()
    size -= size.mean()
    return 2 * torch.sigmoid(slope * size / (size.square().mean().sqrt() + _EPS))
