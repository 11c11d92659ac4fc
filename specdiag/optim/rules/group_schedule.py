"""Schedule of a setting of the groups other than the lr: momentum, or ScionC's target norm."""

from __future__ import annotations

from torch.optim import Optimizer

from specdiag.decay.schedules import Schedule
from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.text import checks


class GroupSchedule:
    """Writes the value of a function of the step into the groups of an optimizer, at once and at each `step()`.

    Together with a LambdaLR it replaces lr decay by momentum (2512.08217, appendix C):

    Example:
        >>> from specdiag.decay import schedules
        >>> optimizer = specdiag.optim.Scion(model.parameters())
        >>> share = schedules.cosine(1.0, 1000, final=0.01)
        >>> def at(step):  # weight of the new gradient, and the share of the lr that is left to its schedule
        ...     return schedules.gradient_weight_for(share(step), 0.1)
        >>> momentum = GroupSchedule(optimizer, "momentum", lambda step: 1 - at(step)[0])
        >>> lr = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: at(step)[1])
    """

    def __init__(self, optimizer: Optimizer, key: str, schedule: Schedule) -> None:
        """Write the first value of the schedule into the groups.

        Args:
            optimizer: whose groups are written.
            key: setting of the groups, such as `momentum`. A group where it is missing or None (no target norm) is left
                as it is.
            schedule: value at each step, from 0 on.

        Raises:
            UsageError: no group has a number of this name, or an argument is of the wrong type.
        """
        checks.instance("optimizer", optimizer, Optimizer, "whose groups have the number")
        checks.text("key", key)
        if not callable(schedule):
            raise UsageError(f"schedule is {checks.shown(schedule)}: give a function of the step")
        if not any(group.get(key) is not None for group in optimizer.param_groups):
            names = ", ".join(key for key in optimizer.defaults if key != "lr")
            raise UsageError(
                f"no group of this {type(optimizer).__name__} has a number '{key}'; its settings are {names}"
            )
        self._optimizer, self._key, self._schedule = optimizer, key, schedule
        self._step = 0
        self._write()

    def step(self) -> None:
        """Go to the next step; call it where the lr scheduler's is called."""
        self._step += 1
        self._write()

    def state_dict(self) -> Table:
        """Return the step. The function is not saved."""
        return {"step": self._step}

    def load_state_dict(self, state: Table) -> None:
        """Continue from a saved step."""
        self._step = state["step"]
        self._write()

    def _write(self) -> None:
        for group in self._optimizer.param_groups:
            if group.get(self._key) is not None:
                group[self._key] = self._schedule(self._step)
