"""Adam's moments and direction, without the step: a base for optimizers that use the direction in another way."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup
from specdiag.optim.optimizers.awd import check_numbers
from specdiag.text import checks


class AdamDirection(Optimizer, abc.ABC):
    """Adam's moments and direction u = m^/(sqrt v^ + eps), with the state and the defaults of torch.optim.AdamW.

    Checkpoints of AdamW load here and the other way round. A parameter without gradient is left alone.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        """Take the arguments of torch.optim.AdamW.

        Args:
            params: parameters or groups.
            lr: learning rate.
            betas: weights of the former averages of gradients and of their squares, each in [0, 1).
            eps: added to the divisor.
            weight_decay: the argument of AdamW.

        Raises:
            UsageError: a number is out of range.
        """
        check_numbers(lr=lr, eps=eps, weight_decay=weight_decay)
        first, second = checks.pair("betas", betas)
        if not (0 <= first < 1 and 0 <= second < 1):
            raise UsageError(f"betas={betas} must lie in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @abc.abstractmethod
    def _move(self, group: ParamGroup, parameters: list[torch.Tensor], directions: Sequence[torch.Tensor]) -> None:
        """Make the step of some parameters of a group along their directions, decay included."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = ((group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups)
        filled = [(group, parameters) for group, parameters in trained if parameters]
        for group, parameters in filled:
            self._update_moments(group, parameters)
        for group, parameters in filled:
            self._move(group, parameters, self._directions(group, parameters))
        return loss

    def _update_moments(self, group: ParamGroup, parameters: list[torch.Tensor]) -> None:
        gradients = [cast("torch.Tensor", p.grad).to(p.dtype) for p in parameters]
        if any(gradient.is_sparse for gradient in gradients):
            raise UsageError(f"{type(self).__name__} takes no sparse gradients: build the embedding with sparse=False")
        for p in parameters:
            if not self.state[p]:
                self.state[p] |= {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in parameters]
        first, second = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        torch._foreach_mul_(second, beta2)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        for state in states:
            state["step"] += 1

    def _directions(self, group: ParamGroup, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        (beta1, beta2), eps = group["betas"], group["eps"]
        directions: list[torch.Tensor] = []
        for state in (self.state[p] for p in parameters):
            n = state["step"].item()
            divisor = (state["exp_avg_sq"].sqrt() / (1 - beta2**n) ** 0.5).add_(eps)
            directions.append((state["exp_avg"] / divisor).div_(1 - beta1**n))
        return directions
