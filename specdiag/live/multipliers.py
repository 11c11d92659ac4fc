"""Factors on the weight decay of a live optimizer, which act during its `step()` only.

A step pre-hook replaces `optimizer.param_groups` by finer groups, a post-hook puts the user's own list back. Outside
`step()`, and inside a closure that `step` calls (all of Lightning's training step is one), the groups are the user's:
schedulers, checkpoints and everybody who reads them see what they always saw. torch keeps optimizer state by
Parameter, so finer groups do not disturb it. Where every factor is 1 the groups are not touched at all.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.optimizers import PLANNED, check_traceable, refusal, unwrap_optimizer
from specdiag.live.parameters import ParamGroup

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
            optimizer: as `unwrap_optimizer` returns it.
        """
        self.steps = 0
        self._factors: dict[str, tuple[str, Factor]] = {}
        self._after: dict[str, After] = {}
        self._user_groups: list[ParamGroup] | None = None
        self._split: list[tuple[ParamGroup, list[ParamGroup]]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
            optimizer.register_state_dict_pre_hook(self.restore),
            optimizer.register_load_state_dict_pre_hook(lambda loading, _: self.restore(loading)),
        ]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Multipliers:
        """Return the multipliers of an optimizer, made at the first call.

        Args:
            optimizer: as `unwrap_optimizer` returns it.
        """
        multipliers = vars(optimizer).get(_ATTRIBUTE)
        if multipliers is None:
            multipliers = vars(optimizer)[_ATTRIBUTE] = cls(optimizer)
        return multipliers

    def add(self, kind: str, owner: str, factor: Factor, *, replace: bool, after: After | None = None) -> None:
        """Add a factor.

        Args:
            kind: `ratio` or `schedule`; an optimizer has one factor of each kind.
            owner: name of the class or method that adds it, for messages.
            factor: see `Factor`.
            replace: replace the former factor of the same owner.
            after: see `After`.

        Raises:
            UsageError: there is a factor of this kind that may not be replaced.
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
        """Remove a factor, and the hooks with the last one.

        Args:
            kind: of the factor; nothing happens where there is none.
            optimizer: that these multipliers belong to.
        """
        self.restore(optimizer)
        self._factors.pop(kind, None)
        self._after.pop(kind, None)
        if not self._factors:
            for handle in self._handles:
                handle.remove()
            vars(optimizer).pop(_ATTRIBUTE, None)

    def restore(self, optimizer: Optimizer) -> None:
        """Put the user's groups back where a step that raised left the finer ones.

        Args:
            optimizer: that these multipliers belong to.
        """
        if self._user_groups is not None:
            optimizer.param_groups = self._user_groups
        self._user_groups, self._split = None, []

    def _enter(
        self, optimizer: Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if _is_within_its_step(optimizer):
            return None
        check_traceable(optimizer)
        self.restore(optimizer)
        self._divide(optimizer)
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._with_user_groups(optimizer, args[1]), *args[2:]), kwargs
        closure = kwargs.get("closure")
        if callable(closure):
            return args, kwargs | {"closure": self._with_user_groups(optimizer, closure)}
        return None

    def _leave(self, optimizer: Optimizer, *_: object) -> None:
        if _is_within_its_step(optimizer):
            return
        self.steps += 1
        self._join(optimizer)
        for after in self._after.values():
            after(optimizer)

    def _with_user_groups(self, optimizer: Optimizer, closure: Callable[[], object]) -> Callable[[], object]:
        """Wrap a closure so that it sees the user's groups; the step takes the factors as the closure left them."""

        def wrapped() -> object:
            self._join(optimizer)
            loss = closure()
            self._divide(optimizer)
            return loss

        return wrapped

    def _divide(self, optimizer: Optimizer) -> None:
        groups: list[ParamGroup] = []
        for group in optimizer.param_groups:
            children = self._children(group)
            groups += children
            if children != [group]:
                self._split.append((group, children))
        if self._split:
            self._user_groups, optimizer.param_groups = optimizer.param_groups, groups

    def _join(self, optimizer: Optimizer) -> None:
        split = self._split
        self.restore(optimizer)
        for group, children in split:
            group.update(_written_values(optimizer, group, children))

    def _children(self, group: ParamGroup) -> list[ParamGroup]:
        """Return `group` itself where all its factors are 1, else one group for each product of factors."""
        if not group["weight_decay"]:
            return [group]
        members: dict[float, list[torch.Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            # Sorted: a float product depends on the order of its factors, and the order of attaching must not matter.
            factors = sorted(factor(parameter, group) for _, factor in self._factors.values())
            members[math.prod(factors)].append(parameter)
        if set(members) <= {1.0}:
            return [group]
        return [
            group | {"params": parameters, "weight_decay": group["weight_decay"] * product}
            for product, parameters in members.items()
        ]


def attach(
    optimizer: object, kind: str, owner: str, factor: Factor, *, replace: bool = False, after: After | None = None
) -> tuple[Multipliers, Callable[[], None]]:
    """Multiply the weight decay of a live optimizer during its steps.

    Args:
        optimizer: a torch optimizer, or accelerate's or Lightning's wrapper of one.
        kind: `ratio` or `schedule`; an optimizer has one factor of each kind.
        owner: name of the class or method that adds it, for messages.
        factor: called for every Parameter with decay, at every step.
        replace: replace the former factor of the same owner.
        after: called after each step.

    Returns:
        The optimizer's multipliers, and a function that removes this factor.

    Raises:
        UsageError: the optimizer cannot take a changing decay, or has a factor of this kind.
    """
    inner = unwrap_optimizer(optimizer)
    if kind == "ratio" and any(PLANNED in group for group in inner.param_groups):
        raise UsageError(
            f"the groups of this optimizer were made by plan.param_groups, and {owner} would multiply their ratios "
            "once more: build the optimizer with plain groups, or leave this out"
        )
    multipliers = Multipliers.of(inner)
    multipliers.add(kind, owner, factor, replace=replace, after=after)
    return multipliers, lambda: multipliers.remove(kind, inner)


def attach_all(
    optimizers: Sequence[Optimizer], kind: str, owner: str, factor: Factor, after: After | None = None
) -> tuple[list[Multipliers], list[Callable[[], None]]]:
    """Attach a factor to each of several optimizers, or to none where one of them is refused.

    Args:
        optimizers: as `unwrap_optimizers` returns them.
        kind: see `attach`.
        owner: see `attach`.
        factor: see `attach`.
        after: see `attach`.

    Returns:
        The multipliers of each optimizer, and the functions that remove the factor from each.

    Raises:
        UsageError: one of the optimizers cannot take a changing decay, or has a factor of this kind.
    """
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
    """Recognise a hook that comes from a `super().step()`: torch runs the hooks once for the step of each class.

    It looks through the stack. A count of entries and exits would go wrong after a step that raises.
    """
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    hooked, frame = frame.f_code, frame.f_back
    while frame is not None:
        if frame.f_code is hooked and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _written_values(optimizer: Optimizer, group: ParamGroup, children: list[ParamGroup]) -> ParamGroup:
    """Collect the values that the optimizer wrote into its groups during the step, such as a step count.

    Raises:
        UsageError: it wrote different values into parts of one group.
    """
    written: ParamGroup = {}
    for child in children:
        for key, value in child.items():
            if key in ("params", "weight_decay") or (key in group and group[key] is value):
                continue
            if key in written and written[key] is not value and bool(written[key] != value):
                raise UsageError(
                    refusal(optimizer, f"keeps '{key}' for each group, which differs between modules of one group")
                )
            written[key] = value
    return written
