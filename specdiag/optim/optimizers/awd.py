"""Adaptive weight decay (AWD, Ghiasi et al., NeurIPS 2023, arXiv 2210.00094): decay in proportion to the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch.optim import SGD
from torch.optim.optimizer import ParamsT

from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup
from specdiag.text import checks

_NEW = 0.9
"""Weight of the new ratio in the average."""
_EPS = 1e-8
_AVERAGE = "gradient_ratio"


class AWD(SGD):
    """SGD whose decay is a constant fraction of the gradient: lambda_t = weight_decay |g|/|w|, averaged.

    average <- 0.1 average + 0.9 |g|/|w|;  w <- w - lr (g + weight_decay average w)

    Norms are over all parameters with a gradient, decayed or not; the average starts at 0 and is not corrected for it.
    Groups without decay keep none. The decay is part of the gradient and so of the momentum, as in SGD. |g| is the norm
    of the gradient that `step()` sees, after clipping.
    """

    def __init__(self, params: ParamsT, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.02) -> None:
        """Take the arguments of SGD.

        Args:
            params: parameters or groups.
            lr: learning rate.
            momentum: of SGD.
            weight_decay: decay over gradient, |lambda w|/|g|; 0.01 to 0.03 in the paper.

        Raises:
            UsageError: a number is negative.
        """
        check_numbers(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a group as torch does; one that comes later starts with the average of the others."""
        known = self.param_groups[0][_AVERAGE] if self.param_groups else 0.0
        super().add_param_group({_AVERAGE: known} | param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make a step. The closure is called once, before the norms are taken."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ratio = gradient_ratio(p for group in self.param_groups for p in group["params"])
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group[_AVERAGE] = averaged(group[_AVERAGE], ratio)
            group["weight_decay"] = group["weight_decay"] * group[_AVERAGE]
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def gradient_ratio(parameters: Iterable[torch.Tensor]) -> float:
    """Compute |g|/|w| over all parameters with a gradient.

    Args:
        parameters: their order decides over the last bits of the norms.

    Returns:
        The ratio; 0 where no parameter has a gradient.
    """
    trained = [p for p in parameters if p.grad is not None]
    if not trained:
        return 0.0
    return _norm([cast("torch.Tensor", p.grad) for p in trained]) / (_norm(trained) + _EPS)


def averaged(average: float, ratio: float) -> float:
    """Return the next average: 0.1 of the last average and 0.9 of the new ratio.

    Args:
        average: the last average; 0 at the start.
        ratio: of this step.
    """
    return (1 - _NEW) * average + _NEW * ratio


def _norm(tensors: list[torch.Tensor]) -> float:
    """Return the norm of all tensors together, over all shards of FSDP."""
    norm: Any = torch.nn.utils.get_total_norm(tensors)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def check_numbers(**numbers: float) -> None:
    """Check arguments that must be numbers of at least 0.

    Args:
        numbers: by the name of the argument.

    Raises:
        UsageError: an argument is no number, or negative.
    """
    for name, value in numbers.items():
        checks.number(name, value)
        if not value >= 0:
            raise UsageError(f"{name}={value} must be at least 0")
