"""Division of an optimizer's groups into finer ones for a step, with a decay or a learning rate of its own for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup


class Division:
    """Finer groups in the place of an optimizer's own. torch keeps state by Parameter, so that they do not disturb it.

    Attributes:
        whole: the user's own list of groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        divide: Callable[[ParamGroup], list[ParamGroup]],
        own: Literal["weight_decay", "lr"] = "weight_decay",
    ) -> None:
        """Replace the groups.

        Args:
            optimizer: whose list of groups is replaced by another list.
            divide: group -> its parts, or a list of the group itself.
            own: the setting of which the parts have values of their own.
        """
        self.whole = optimizer.param_groups
        self._own = own
        self._parts = [(group, divide(group)) for group in self.whole]
        self._whole = {id(part): group for group, parts in self._parts for part in parts}
        optimizer.param_groups = [part for _, parts in self._parts for part in parts]

    def cancel(self, optimizer: Optimizer) -> None:
        """Put the user's own list back.

        Args:
            optimizer: whose groups were replaced.
        """
        optimizer.param_groups = self.whole

    def join(self, optimizer: Optimizer) -> None:
        """Put the user's own list back, with what the optimizer wrote into the parts, such as a step count.

        Args:
            optimizer: whose groups were replaced.

        Raises:
            UsageError: it wrote different values into parts of one group.
        """
        self.cancel(optimizer)
        for group, parts in self._parts:
            group.update(_written_values(group, parts, self._own))

    def whole_group(self, part: ParamGroup) -> ParamGroup:
        """Return the user's group of which a group of the step is a part.

        Args:
            part: one of the optimizer's groups within the step.
        """
        return self._whole.get(id(part), part)


def _written_values(group: ParamGroup, parts: list[ParamGroup], own: str) -> ParamGroup:
    written: ParamGroup = {}
    for part in parts:
        for key, value in part.items():
            if key in ("params", own) or (key in group and group[key] is value):
                continue
            if key in written and written[key] is not value and _differ(written[key], value):
                raise UsageError(
                    f"the optimizer keeps '{key}' for each group, which differs between modules of one group: fix the "
                    "decays when it is built, with plan.param_groups(model, lr=...)"
                )
            written[key] = value
    return written


def _differ(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return not torch.equal(first, second)
    return bool(first != second)
