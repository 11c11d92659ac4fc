"""The decay of one step of an optimizer, in place of its own: begun before the update, then finished or taken back."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.optim import Optimizer

from specdiag.live.division import Division
from specdiag.live.laws import Application, Law
from specdiag.live.parameters import ParamGroup
from specdiag.live.treatment import ROUNDED, Treatment

Product = Callable[[torch.Tensor, ParamGroup], float]
"""(parameter, its group) -> factor on the group's weight decay."""
ByWeight = Callable[[torch.Tensor], torch.Tensor]
"""(parameter with a gradient) -> factor on the decay of each of its weights."""

_OFF = 0.0
"""Decay of a group while its law is applied; the object itself tells whether the optimizer wrote another."""


class DecayStep:
    """Groups, gradients and weights as they are changed for a step, and the user's own. Begun again for each step."""

    def __init__(self) -> None:
        """Begin with nothing that is changed."""
        self._changed: list[tuple[ParamGroup, object]] = []
        self._applied: list[Application] = []
        self._division: Division | None = None
        self._counted, self._has_warned = False, False
        self._decayed: set[torch.Tensor] = set()

    def begin(self, optimizer: Optimizer, treatment: Treatment, product: Product, by_weight: ByWeight | None) -> None:
        """Change what the step will read. Groups whose factors are all 1 are left alone.

        Args:
            optimizer: within its step, before the update.
            treatment: of the optimizer.
            product: of all factors.
            by_weight: factors on the decay of each weight; the optimizer must be lawful.
        """
        self._counted = treatment.counted
        changed: list[tuple[ParamGroup, list[float]]] = []
        for group in optimizer.param_groups:
            factors = [product(parameter, group) for parameter in group["params"]] if group["weight_decay"] else []
            if any(factor != 1 for factor in factors) or (factors and by_weight is not None):
                changed.append((group, factors))
        if changed and treatment.divides and by_weight is None:
            parts = {id(group): _parts(group, factors) for group, factors in changed}
            self._division = Division(optimizer, lambda group: parts.get(id(group), [group]))
            return
        for group, factors in changed:
            decay = group["weight_decay"]
            self._changed.append((group, decay))
            group["weight_decay"] = _OFF
            for parameter, factor in zip(group["params"], factors, strict=True):
                self._apply(optimizer, treatment, group, parameter, decay * factor, by_weight)

    @torch.no_grad()
    def _apply(
        self,
        optimizer: Optimizer,
        treatment: Treatment,
        group: ParamGroup,
        parameter: torch.Tensor,
        decay: float | torch.Tensor,
        by_weight: ByWeight | None,
    ) -> None:
        law = treatment.laws.get(parameter)
        if law is not None and parameter.grad is not None and parameter not in self._decayed:
            decay = decay if by_weight is None else decay * by_weight(parameter)
            amount = law.amount(cast("float | torch.Tensor", group.get("lr")), decay)
            self._warn_of_rounding(law, parameter, amount)
            self._applied.append(Application(law, parameter, amount, optimizer))

    def _warn_of_rounding(self, law: Law, parameter: torch.Tensor, amount: float | torch.Tensor) -> None:
        """Warn once of a factor that rounds to 1: these groups cannot be divided, or they would have been."""
        if self._has_warned or law.kind == "gradient" or isinstance(amount, torch.Tensor):
            return
        if parameter.dtype in ROUNDED and 0 < amount < torch.finfo(parameter.dtype).eps / 4:
            self._has_warned = True
            warnings.warn(
                f"A decay of {amount:.1e} a step is lost in weights of {parameter.dtype}, for the groups of this "
                "optimizer cannot be divided: keep the weights in float32 and compute under torch.autocast.",
                UserWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def finish(self, optimizer: Optimizer) -> None:
        """Apply what acts after the update, and put back what is the user's. What was not updated has not decayed.

        Args:
            optimizer: whose step was begun.

        Raises:
            UsageError: the groups were divided, and the optimizer wrote different values into parts of one group.
        """
        for application, is_skipped in self._end():
            application.undo() if is_skipped else application.finish()
        self._decayed.clear()
        self.suspend(optimizer)

    def take_back(self, optimizer: Optimizer) -> None:
        """Put back the user's groups and gradients, and all weights that the optimizer has not updated.

        Args:
            optimizer: whose step was begun, or not.
        """
        if self._division is not None:
            self._division.cancel(optimizer)
            self._division = None
        self.suspend(optimizer)
        self._decayed.clear()

    @torch.no_grad()
    def suspend(self, optimizer: Optimizer) -> None:
        """Do the same within a step that goes on. Weights that were scaled and then updated are not scaled once more.

        Args:
            optimizer: whose step was begun, or not.

        Raises:
            UsageError: see `finish`.
        """
        for application, is_skipped in self._end():
            if is_skipped:
                application.undo()
                continue
            application.put_gradient_back()
            if application.law.kind == "before":
                self._decayed.add(application.parameter)
        changed, self._changed = self._changed, []
        for group, decay in changed:
            if group["weight_decay"] is _OFF:
                group["weight_decay"] = decay
        division, self._division = self._division, None
        if division is not None:
            division.join(optimizer)

    def user_decays(self, optimizer: Optimizer) -> list[tuple[ParamGroup, float]]:
        """Return the user's groups with the decay of each, also within a step.

        Args:
            optimizer: whose step was begun, or not.
        """
        before = {id(group): decay for group, decay in self._changed}
        groups = optimizer.param_groups if self._division is None else self._division.whole
        return [(group, float(cast("Any", before.get(id(group), group.get("weight_decay", 0.0))))) for group in groups]

    def _end(self) -> list[tuple[Application, bool]]:
        """Return what was applied, each with True where the optimizer has not updated the Parameter.

        Where torch does not count the writes, an update of zeros looks like none: there a step counts as skipped only
        where it changed no Parameter at all.
        """
        applied, self._applied = self._applied, []
        if self._counted:
            return [(each, not each.is_counted() and each.is_untouched()) for each in applied]
        is_skipped = all(each.is_untouched() for each in applied)
        return [(each, is_skipped) for each in applied]


def _parts(group: ParamGroup, factors: list[float]) -> list[ParamGroup]:
    """Divide a group into one for each factor."""
    members: dict[float, list[torch.Tensor]] = defaultdict(list)
    for parameter, factor in zip(group["params"], factors, strict=True):
        members[factor].append(parameter)
    decay = group["weight_decay"]
    return [group | {"params": parameters, "weight_decay": decay * factor} for factor, parameters in members.items()]
