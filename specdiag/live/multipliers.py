"""Factors on the weight decay and the learning rate of a live optimizer, which act during its `step()` only.

A step pre-hook sets the decay of a group to 0 and applies the law that the optimizer follows to each of its Parameters,
with a decay of its own; a post-hook puts the groups back. An optimizer that follows no law has its groups divided for
the step instead, where it lets them be (`treatment`). Outside `step()`, and inside a closure that `step` calls (all of
Lightning's training step is one), groups, gradients and undecayed weights are the user's, and so they are after a step
that raises: schedulers, checkpoints and everybody who reads them see what they always saw. Where every factor is 1 a
group is not touched at all. Factors on the learning rate scale what a step did, decay included (`rates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.decay_step import ByWeight, DecayStep
from specdiag.live.optimizers import check_traceable, refusal
from specdiag.live.parameters import ParamGroup
from specdiag.live.rates import RateStep
from specdiag.live.stepping import guarded_step, is_within_its_step
from specdiag.live.treatment import Treatment, choose_treatment

Factor = Callable[[torch.Tensor, ParamGroup], float]
"""(parameter, its group) -> factor on the group's weight decay, or on its learning rate."""
Kind = Literal["ratio", "schedule", "rate"]
"""Factors on the decay by module and by step, and factors on the learning rate. An optimizer has one of each kind."""
_RATE: Kind = "rate"
After = Callable[[Optimizer], None]
"""Called with an optimizer once its step has updated the weights."""

ATTRIBUTE = "_specdiag_multipliers"
"""Attribute of an optimizer that holds its multipliers."""


class Multipliers:
    """All factors of one optimizer. Those on the decay are multiplied, in whatever order they were added.

    Attributes:
        steps: how often `step()` has run with these hooks.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Register the hooks. Use `of`, which keeps one object for each optimizer.

        Args:
            optimizer: as `unwrap_optimizers` returns it.
        """
        self.steps = 0
        self._factors: dict[Kind, tuple[str, Factor]] = {}
        self._by_weight: ByWeight | None = None
        self._after: dict[Kind, After] = {}
        self._treatment: Treatment | None = None
        self._step, self._rates = DecayStep(), RateStep()
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
            optimizer.register_state_dict_pre_hook(self._take_back),
            optimizer.register_load_state_dict_pre_hook(self._forget),
        ]
        self._unguarded = vars(optimizer).get("step")  # a scheduler puts one there
        self._guarded = vars(optimizer)["step"] = guarded_step(optimizer, self._take_back)

    @classmethod
    def of(cls, optimizer: Optimizer) -> Multipliers:
        """Return the multipliers of an optimizer, made at the first call.

        Args:
            optimizer: as `unwrap_optimizers` returns it.
        """
        multipliers = vars(optimizer).get(ATTRIBUTE)
        if multipliers is None:
            multipliers = vars(optimizer)[ATTRIBUTE] = cls(optimizer)
        return multipliers

    def add(
        self,
        kind: Kind,
        owner: str,
        factor: Factor,
        optimizer: Optimizer,
        *,
        replace: bool,
        after: After | None = None,
        by_weight: ByWeight | None = None,
    ) -> None:
        """Add a factor.

        Args:
            kind: see `Kind`.
            owner: name of the class or method that adds it, for messages.
            factor: see `Factor`.
            optimizer: that these multipliers belong to.
            replace: replace the former factor of the same owner.
            after: see `After`.
            by_weight: see `ByWeight`.

        Raises:
            UsageError: there is a factor of this kind that may not be replaced, or the optimizer cannot take one.
        """
        former = self._factors.get(kind)
        if former is not None and not (replace and former[0] == owner):
            what = "learning rate" if kind == _RATE else "decay"
            raise UsageError(
                f"{former[0]} already sets the {what} of this optimizer and {owner} would multiply it once more: "
                "detach() the former, or build a new optimizer"
            )
        before, self._by_weight = self._by_weight, by_weight or self._by_weight
        try:
            self._rates.ask(optimizer) if kind == _RATE else self._ask(optimizer)
        except UsageError:
            self._by_weight = before
            self._unhook_if_idle(optimizer)
            raise
        self._factors[kind] = (owner, factor)
        if after is not None:
            self._after[kind] = after

    def remove(self, kind: Kind, optimizer: Optimizer) -> None:
        """Remove a factor, and the hooks with the last one.

        Args:
            kind: of the factor; nothing happens where there is none.
            optimizer: that these multipliers belong to.
        """
        self._take_back(optimizer)
        self._factors.pop(kind, None)
        self._after.pop(kind, None)
        if kind == "ratio":
            self._by_weight = None
        self._unhook_if_idle(optimizer)

    def decays(self, optimizer: Optimizer) -> dict[torch.Tensor, float]:
        """Return the decay of each Parameter in a step, all factors on it included.

        Args:
            optimizer: that these multipliers belong to; within its step or not.

        Returns:
            Decays by Parameter; 0 where each weight has one of its own.
        """
        found: dict[torch.Tensor, float] = {}
        for group, decay in self._step.user_decays(optimizer):
            none = not decay or self._by_weight is not None
            found |= {p: 0.0 if none else decay * self._product(p, group) for p in group["params"]}
        return found

    def rates(self, optimizer: Optimizer) -> dict[torch.Tensor, float]:
        """Return the factor on the learning rate of each Parameter in a step.

        Args:
            optimizer: that these multipliers belong to; within its step or not.
        """
        return {p: self._rate(p, group) for group in optimizer.param_groups for p in group["params"]}

    def _unhook_if_idle(self, optimizer: Optimizer) -> None:
        if not self._factors:
            for handle in self._handles:
                handle.remove()
            vars(optimizer).pop(ATTRIBUTE, None)
            if vars(optimizer).get("step") is self._guarded:
                del vars(optimizer)["step"]
                if self._unguarded is not None:
                    vars(optimizer)["step"] = self._unguarded

    def _ask(self, optimizer: Optimizer) -> Treatment | None:
        """Return the treatment of an optimizer; None while no group has a decay."""
        decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
        if decayed and (self._treatment is None or not self._treatment.decayed.issuperset(decayed)):
            self._treatment = choose_treatment(optimizer)
        if self._treatment is not None and self._by_weight is not None and not self._treatment.lawful:
            raise UsageError(refusal(optimizer, "decays by no law that could be applied to each weight by itself"))
        return self._treatment

    def _forget(self, optimizer: Optimizer, state: object) -> None:
        """Ask again after a state was loaded: it may have brought other settings."""
        self._take_back(optimizer)
        self._treatment = None
        self._rates.forget()

    def _enter(
        self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if is_within_its_step(optimizer):
            return None
        check_traceable(optimizer)
        self._take_back(optimizer)
        self._begin(optimizer)
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._as_the_user_left_it(optimizer, args[1]), *args[2:]), kwargs
        closure = kwargs.get("closure")
        if callable(closure):
            return args, kwargs | {"closure": self._as_the_user_left_it(optimizer, closure)}
        return None

    def _leave(self, optimizer: Optimizer, *_: object) -> None:
        if is_within_its_step(optimizer):
            return
        self.steps += 1
        self._step.finish(optimizer)
        self._rates.finish(optimizer)
        for after in self._after.values():
            after(optimizer)

    def _as_the_user_left_it(self, optimizer: Optimizer, closure: Callable[[], object]) -> Callable[[], object]:
        """Wrap a closure so that it sees what is the user's; the step takes the factors as the closure left them."""

        def wrapped() -> object:
            self._step.suspend(optimizer)
            self._rates.finish(optimizer)
            loss = closure()
            self._begin(optimizer)
            return loss

        return wrapped

    def _begin(self, optimizer: Optimizer) -> None:
        if _RATE in self._factors:
            self._rates.begin(optimizer, self._rate)
        treatment = self._ask(optimizer) if len(self._factors) > (_RATE in self._factors) else None
        if treatment is not None:
            self._step.begin(optimizer, treatment, self._product, self._by_weight)

    def _take_back(self, optimizer: Optimizer) -> None:
        self._step.take_back(optimizer)
        self._rates.cancel(optimizer)

    def _rate(self, parameter: torch.Tensor, group: ParamGroup) -> float:
        _, factor = self._factors.get(_RATE, ("", _one))
        return factor(parameter, self._rates.user_group(group))

    def _product(self, parameter: torch.Tensor, group: ParamGroup) -> float:
        # Sorted: a float product depends on the order of its factors, and the order of attaching must not matter.
        group = self._rates.user_group(group)
        return math.prod(sorted(f(parameter, group) for kind, (_, f) in self._factors.items() if kind != _RATE))


def _one(parameter: torch.Tensor, group: ParamGroup) -> float:
    return 1.0
