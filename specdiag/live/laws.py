"""Laws of weight decay, each applied to one Parameter beside an optimizer whose own decay is 0 for the step.

With x = scale lr decay, or scale decay where a law does not go by the lr, and u the update of a step without decay:

    before    w <- (1 - x) w - u             decoupled (AdamW, Muon, Lion)
    after     w <- (1 - x) (w - u)           decoupled, after the update
    cautious  w <- w - u - x w [u w >= 0]    decoupled, where the update also pulls towards 0
    gradient  g <- g + x w                   coupled (Adam, SGD); never by the lr
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from torch.optim import Optimizer

Kind = Literal["before", "after", "cautious", "gradient"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Law:
    """A law that the decay of a Parameter follows.

    Attributes:
        kind: see the formulas above.
        scale: factor on the decay; -1 for a gradient that is maximized.
        by_lr: True where the learning rate multiplies the decay.
    """

    kind: Kind
    scale: float = 1.0
    by_lr: bool = True

    def amount(self, lr: float | torch.Tensor, decay: float | torch.Tensor) -> float | torch.Tensor:
        """Return x.

        Args:
            lr: of the step.
            decay: of the Parameter, or one for each of its weights.
        """
        amount = lr * decay if self.by_lr else decay
        return amount if self.scale == 1 else amount * self.scale


class Application:
    """Decay of one Parameter in one step: begun before the optimizer's update, then finished or undone.

    Attributes:
        parameter: the Parameter.
        law: its law.
    """

    def __init__(self, law: Law, parameter: torch.Tensor, amount: float | torch.Tensor, optimizer: Optimizer) -> None:
        """Scale the weights or replace the gradient, as far as the law acts before the update.

        Args:
            law: of the Parameter.
            parameter: with a gradient.
            amount: x of the law.
            optimizer: within its step; a GradScaler may have left its factor on it, and the mark of a step to skip.
        """
        self.parameter, self.law = parameter, law
        self._weights, self._amount = _local(parameter.detach()), _local(amount)
        self._found_inf = cast("torch.Tensor | None", getattr(optimizer, "found_inf", None))
        self._gradient = self._given = self._before = None
        if law.kind == "gradient":
            self._gradient = cast("torch.Tensor", parameter.grad)
            scale = cast("torch.Tensor | None", getattr(optimizer, "grad_scale", None))
            self._given = parameter.grad = _with_term(self._gradient, parameter.detach(), amount, scale)
        else:
            self._before = self._weights.clone()
        if law.kind == "before":
            self._weights.mul_(self._factor())
        self._version = version(parameter)

    def is_counted(self) -> bool:
        """Tell whether torch has counted a write to the Parameter since."""
        return version(self.parameter) != self._version

    def is_untouched(self) -> bool:
        """Tell whether the Parameter has the values that it had when the optimizer's update began."""
        if self._before is None:
            return not self.is_counted()
        expected = self._before * self._factor() if self.law.kind == "before" else self._before
        return torch.equal(self._weights, expected)

    def finish(self) -> None:
        """Apply what acts after the update, and put the user's gradient back."""
        self.put_gradient_back()
        if self.law.kind == "after":
            self._weights.mul_(self._factor())
        elif self.law.kind == "cautious":
            before = cast("torch.Tensor", self._before)
            towards_zero = (before - self._weights) * before >= 0
            self._weights.sub_(before * towards_zero * self._unless_skipped(self._amount, 0.0))

    def undo(self) -> None:
        """Put back what the optimizer has not updated: the weights to the bit, and the user's gradient."""
        self.put_gradient_back()
        if self.law.kind == "before":
            self._weights.copy_(cast("torch.Tensor", self._before))

    def put_gradient_back(self) -> None:
        """Put the user's gradient back, unless the optimizer set another one."""
        if self._given is not None and self.parameter.grad is self._given:
            self.parameter.grad = self._gradient

    def _factor(self) -> float | torch.Tensor:
        return self._unless_skipped(1 - self._amount, 1.0)

    def _unless_skipped(self, value: float | torch.Tensor, otherwise: float) -> float | torch.Tensor:
        """Return `value`, or `otherwise` in a step that a fused optimizer skips for its infinite gradients."""
        if self._found_inf is None:
            return value
        one = torch.ones((), dtype=self._weights.dtype, device=self._found_inf.device)
        return torch.where(self._found_inf > 0, otherwise * one, value * one)


def _with_term(
    gradient: torch.Tensor, weights: torch.Tensor, amount: float | torch.Tensor, scale: torch.Tensor | None
) -> torch.Tensor:
    """Return g + x w; x is multiplied by the scale of gradients that the optimizer will divide by it."""
    if scale is None and not isinstance(amount, torch.Tensor):
        return gradient.add(weights, alpha=amount)
    return gradient + weights * amount * (1.0 if scale is None else scale)


def _local(value: Value) -> Value:
    """Return this rank's part of a DTensor, and anything else as it is: decay is elementwise."""
    return getattr(value, "_local_tensor", value)


def version(parameter: torch.Tensor) -> int:
    """Return torch's count of the changes to a tensor."""
    return parameter._version  # pyright: ignore[reportPrivateUsage]
