"""Factors on the weight decay of a live optimizer, there during its `step()` only.

A step pre-hook replaces `optimizer.param_groups` by finer groups, a post-hook puts the user's own list back. Outside
`step()`, and inside a closure that it is given (all of Lightning's training step is one), nothing has changed:
schedulers, checkpoints and everybody who reads the groups see what they always saw. torch keeps optimizer state by
Parameter, so that it does not notice either. Where every factor is 1 the groups are not touched at all.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.optimizers import PLANNED, check_traceable, refusal, servable
from specdiag.live.parameters import ParamGroup

Factor = Callable[[torch.Tensor, ParamGroup], float]
"""(parameter, its group) -> what multiplies the group's weight decay."""
After = Callable[[Optimizer], None]
"""Called with an optimizer once its step has updated the weights."""

_HOME = "_specdiag_multipliers"


class Multipliers:
    """All factors of one optimizer. They multiply, whatever the order in which they came.

    Attributes:
        steps: how often `step()` has run with these hooks.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.steps = 0
        self._factors: dict[str, tuple[str, Factor]] = {}
        self._after: dict[str, After] = {}
        self._resting: list[ParamGroup] | None = None
        self._split: list[tuple[ParamGroup, list[ParamGroup]]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
            optimizer.register_state_dict_pre_hook(self.restore),
            optimizer.register_load_state_dict_pre_hook(lambda held, _: self.restore(held)),
        ]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Multipliers:
        """Those of this optimizer, made where it has none yet."""
        held = vars(optimizer).get(_HOME)
        if held is None:
            held = vars(optimizer)[_HOME] = cls(optimizer)
        return held

    def add(self, kind: str, owner: str, factor: Factor, *, replace: bool, after: After | None = None) -> None:
        """Add a factor.

        Args:
            kind: one of each kind at a time.
            owner: who asks, for messages.
            factor: see `Factor`.
            replace: take the place of the same owner's former factor.
            after: see `After`.

        Raises:
            UsageError: there is one of this kind, and it may not be replaced.
        """
        former = self._factors.get(kind)
        if former is not None and not (replace and former[0] == owner):
            raise UsageError(
                f"{former[0]} already sets the decay of this optimizer and {owner} would multiply it once more: "
                "detach() the former, or build a new optimizer"
            )
        self._factors[kind] = (owner, factor)
        if after is not None:
            self._after[kind] = after

    def remove(self, kind: str, optimizer: Optimizer) -> None:
        """Take a factor away; with the last one the hooks go too."""
        self.restore(optimizer)
        self._factors.pop(kind, None)
        self._after.pop(kind, None)
        if not self._factors:
            for handle in self._handles:
                handle.remove()
            vars(optimizer).pop(_HOME, None)

    def restore(self, optimizer: Optimizer) -> None:
        """Put the user's groups back, as a step that raised could not."""
        if self._resting is not None:
            optimizer.param_groups = self._resting
        self._resting, self._split = None, []

    def _enter(
        self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if _is_within_its_step(optimizer):
            return None
        check_traceable(optimizer)
        self.restore(optimizer)
        self._divide(optimizer)
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._apart(optimizer, args[1]), *args[2:]), kwargs
        closure = kwargs.get("closure")
        if callable(closure):
            return args, kwargs | {"closure": self._apart(optimizer, closure)}
        return None

    def _leave(self, optimizer: Optimizer, *_: object) -> None:
        if _is_within_its_step(optimizer):
            return
        self.steps += 1
        self._join(optimizer)
        for after in self._after.values():
            after(optimizer)

    def _apart(self, optimizer: Optimizer, closure: Callable[[], object]) -> Callable[[], object]:
        """The closure with the user's groups around it; the factors that hold when it returns are those that act."""

        def with_own_groups() -> object:
            self._join(optimizer)
            found = closure()
            self._divide(optimizer)
            return found

        return with_own_groups

    def _divide(self, optimizer: Optimizer) -> None:
        groups: list[ParamGroup] = []
        for group in optimizer.param_groups:
            children = self._children(group)
            groups += children
            if children != [group]:
                self._split.append((group, children))
        if self._split:
            self._resting, optimizer.param_groups = optimizer.param_groups, groups

    def _join(self, optimizer: Optimizer) -> None:
        split = self._split
        self.restore(optimizer)
        for group, children in split:
            group.update(_written(optimizer, group, children))

    def _children(self, group: ParamGroup) -> list[ParamGroup]:
        """`group` itself where all its factors are 1, else one group for each product of factors."""
        if not group["weight_decay"]:
            return [group]
        members: dict[float, list[torch.Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            # Sorted, for three factors associate differently and the order of attaching must not show.
            factors = sorted(factor(parameter, group) for _, factor in self._factors.values())
            members[math.prod(factors)].append(parameter)
        if set(members) <= {1.0}:
            return [group]
        return [
            group | {"params": held, "weight_decay": group["weight_decay"] * product}
            for product, held in members.items()
        ]


def attach(
    optimizer: object, kind: str, owner: str, factor: Factor, *, replace: bool = False, after: After | None = None
) -> tuple[Multipliers, Callable[[], None]]:
    """Multiply the weight decay of a live optimizer during its steps.

    Args:
        optimizer: a torch optimizer, or accelerate's or Lightning's wrapper of one.
        kind: `ratio` or `schedule`; one of each.
        owner: who asks, for messages.
        factor: called for every Parameter with decay, at every step.
        replace: take the place of the same owner's former factor.
        after: called after each step.

    Returns:
        The optimizer's multipliers, and what detaches this one.

    Raises:
        UsageError: the optimizer cannot be served, or has a factor of this kind.
    """
    held = servable(optimizer)
    if kind == "ratio" and any(PLANNED in group for group in held.param_groups):
        raise UsageError(
            f"the groups of this optimizer were made by plan.param_groups, and {owner} would multiply their ratios "
            "once more: build the optimizer with plain groups, or leave this out"
        )
    multipliers = Multipliers.of(held)
    multipliers.add(kind, owner, factor, replace=replace, after=after)
    return multipliers, lambda: multipliers.remove(kind, held)


def attach_all(
    optimizers: Sequence[Optimizer], kind: str, owner: str, factor: Factor, after: After | None = None
) -> tuple[list[Multipliers], list[Callable[[], None]]]:
    """`attach` to each of them, or, where one refuses, to none."""
    attached: list[Multipliers] = []
    detachments: list[Callable[[], None]] = []
    try:
        for optimizer in optimizers:
            multipliers, detach = attach(optimizer, kind, owner, factor, after=after)
            attached.append(multipliers)
            detachments.append(detach)
    except UsageError:
        for detach in detachments:
            detach()
        raise
    return attached, detachments


def _is_within_its_step(optimizer: Optimizer) -> bool:
    """Recognise a hook that comes from a `super().step()`: torch runs the hooks once for each class's step.

    Counting entries would not do: a step that raises never leaves.
    """
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    hooked, frame = frame.f_code, frame.f_back
    while frame is not None:
        if frame.f_code is hooked and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _written(optimizer: Optimizer, group: ParamGroup, children: list[ParamGroup]) -> ParamGroup:
    """Collect the values that the optimizer wrote into its groups during the step, such as a step count.

    Raises:
        UsageError: it wrote different things into groups that are one outside.
    """
    found: ParamGroup = {}
    for child in children:
        for key, value in child.items():
            if key in ("params", "weight_decay") or (key in group and group[key] is value):
                continue
            if key in found and found[key] is not value and bool(found[key] != value):
                raise UsageError(
                    refusal(optimizer, f"keeps '{key}' for each group, which differs between modules of one group")
                )
            found[key] = value
    return found
