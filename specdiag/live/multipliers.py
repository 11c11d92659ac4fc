"""Factors on the weight decay of a live optimizer, which act during its `step()` only.

A step pre-hook sets the decay of a group to 0 and applies the law that the optimizer follows to each of its Parameters,
with a decay of its own; a post-hook puts the groups back. An optimizer that follows no law has its groups divided for
the step instead, where it lets them be (`treatment`). Outside `step()`, and inside a closure that `step` calls (all of
Lightning's training step is one), groups, gradients and undecayed weights are the user's, and so they are after a step
that raises: schedulers, checkpoints and everybody who reads them see what they always saw. Where every factor is 1 a
group is not touched at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.decay_step import ByWeight, DecayStep
from specdiag.live.optimizers import PLANNED, check_traceable, refusal, stepped_optimizers, unwrap_optimizers
from specdiag.live.parameters import ParamGroup
from specdiag.live.stepping import guarded_step, is_within_its_step
from specdiag.live.treatment import Treatment, choose_treatment

Factor = Callable[[torch.Tensor, ParamGroup], float]
"""(parameter, its group) -> factor on the group's weight decay."""
After = Callable[[Optimizer], None]
"""Called with an optimizer once its step has updated the weights."""

_ATTRIBUTE = "_specdiag_multipliers"
"""Attribute of an optimizer that holds its multipliers."""


class Multipliers:
    """All factors of one optimizer. The decay is multiplied by their product, in whatever order they were added.

    Attributes:
        steps: how often `step()` has run with these hooks.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Register the hooks. Use `of`, which keeps one object for each optimizer.

        Args:
            optimizer: as `unwrap_optimizers` returns it.
        """
        self.steps = 0
        self._factors: dict[str, tuple[str, Factor]] = {}
        self._by_weight: ByWeight | None = None
        self._after: dict[str, After] = {}
        self._treatment: Treatment | None = None
        self._step = DecayStep()
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
            optimizer.register_state_dict_pre_hook(self._step.take_back),
            optimizer.register_load_state_dict_pre_hook(self._forget),
        ]
        self._unguarded = vars(optimizer).get("step")  # a scheduler puts one there
        self._guarded = vars(optimizer)["step"] = guarded_step(optimizer, self._step.take_back)

    @classmethod
    def of(cls, optimizer: Optimizer) -> Multipliers:
        """Return the multipliers of an optimizer, made at the first call.

        Args:
            optimizer: as `unwrap_optimizers` returns it.
        """
        multipliers = vars(optimizer).get(_ATTRIBUTE)
        if multipliers is None:
            multipliers = vars(optimizer)[_ATTRIBUTE] = cls(optimizer)
        return multipliers

    def add(
        self,
        kind: str,
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
            kind: `ratio` or `schedule`; an optimizer has one factor of each kind.
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
            raise UsageError(
                f"{former[0]} already sets the decay of this optimizer and {owner} would multiply it once more: "
                "detach() the former, or build a new optimizer"
            )
        before, self._by_weight = self._by_weight, by_weight or self._by_weight
        try:
            self._ask(optimizer)
        except UsageError:
            self._by_weight = before
            self._unhook_if_idle(optimizer)
            raise
        self._factors[kind] = (owner, factor)
        if after is not None:
            self._after[kind] = after

    def remove(self, kind: str, optimizer: Optimizer) -> None:
        """Remove a factor, and the hooks with the last one.

        Args:
            kind: of the factor; nothing happens where there is none.
            optimizer: that these multipliers belong to.
        """
        self._step.take_back(optimizer)
        self._factors.pop(kind, None)
        self._after.pop(kind, None)
        if kind == "ratio":
            self._by_weight = None
        self._unhook_if_idle(optimizer)

    def decays(self, optimizer: Optimizer) -> dict[torch.Tensor, float]:
        """Return the decay of each Parameter in a step, all factors included.

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

    def _unhook_if_idle(self, optimizer: Optimizer) -> None:
        if not self._factors:
            for handle in self._handles:
                handle.remove()
            vars(optimizer).pop(_ATTRIBUTE, None)
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
        self._step.take_back(optimizer)
        self._treatment = None

    def _enter(
        self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if is_within_its_step(optimizer):
            return None
        check_traceable(optimizer)
        self._step.take_back(optimizer)
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
        for after in self._after.values():
            after(optimizer)

    def _as_the_user_left_it(self, optimizer: Optimizer, closure: Callable[[], object]) -> Callable[[], object]:
        """Wrap a closure so that it sees what is the user's; the step takes the factors as the closure left them."""

        def wrapped() -> object:
            self._step.suspend(optimizer)
            loss = closure()
            self._begin(optimizer)
            return loss

        return wrapped

    def _begin(self, optimizer: Optimizer) -> None:
        treatment = self._ask(optimizer)
        if treatment is not None:
            self._step.begin(optimizer, treatment, self._product, self._by_weight)

    def _product(self, parameter: torch.Tensor, group: ParamGroup) -> float:
        # Sorted: a float product depends on the order of its factors, and the order of attaching must not matter.
        return math.prod(sorted(factor(parameter, group) for _, factor in self._factors.values()))


def attach(
    optimizers: object,
    kind: str,
    owner: str,
    factor: Factor,
    *,
    replace: bool = False,
    after: After | None = None,
    by_weight: ByWeight | None = None,
) -> tuple[list[Multipliers], Callable[[], None]]:
    """Multiply the weight decay of live optimizers during their steps: of all, or of none where one is refused.

    Args:
        optimizers: one or several, as `unwrap_optimizers` takes them.
        kind: `ratio` or `schedule`; an optimizer has one factor of each kind.
        owner: name of the class or method that adds it, for messages.
        factor: called for every Parameter with decay, at every step.
        replace: replace the former factor of the same owner.
        after: called after each step of each optimizer.
        by_weight: called for every Parameter with decay and a gradient, at every step.

    Returns:
        The multipliers of each optimizer, and a function that removes this factor from all.

    Raises:
        UsageError: one of the optimizers cannot take a changing decay, or has a factor of this kind.
    """
    attached: list[tuple[Optimizer, Multipliers]] = []

    def detach() -> None:
        while attached:
            optimizer, multipliers = attached.pop()
            multipliers.remove(kind, optimizer)

    try:
        for optimizer in unwrap_optimizers(optimizers):
            if kind == "ratio" and any(PLANNED in group for group in optimizer.param_groups):
                raise UsageError(
                    f"the groups of this optimizer were made by plan.param_groups, and {owner} would multiply their "
                    "ratios once more: build the optimizer with plain groups, or leave this out"
                )
            multipliers = Multipliers.of(optimizer)
            multipliers.add(kind, owner, factor, optimizer, replace=replace, after=after, by_weight=by_weight)
            attached.append((optimizer, multipliers))
    except UsageError:
        detach()
        raise
    return [multipliers for _, multipliers in attached], detach


def decays_in_force(optimizer: Optimizer) -> dict[torch.Tensor, float]:
    """Return the weight decay of each Parameter in a step now, with the factors of whatever is attached.

    Args:
        optimizer: a torch optimizer, accelerate's wrapper of one, or a container of several; within its step or not.

    Returns:
        Decays by Parameter; 0 where a group has none, or a rule gives each weight one of its own.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer):
        return decays_in_force(inner)
    found: dict[torch.Tensor, float] = {}
    for each in stepped_optimizers(optimizer):
        multipliers = vars(each).get(_ATTRIBUTE)
        if multipliers is not None:
            found |= multipliers.decays(each)
        else:
            found |= {p: float(g.get("weight_decay", 0.0)) for g in each.param_groups for p in g["params"]}
    return found
