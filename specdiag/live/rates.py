"""Factors on the learning rate of Parameters, which act in the steps of a live optimizer only.

The update of each Parameter is scaled once the step is done, where the optimizer's update is proportional to its
learning rate; or its groups are divided for the step, each part with a rate of its own. Decay is a part of the update:
a decoupled decay is scaled with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.division import Division
from specdiag.live.ghost_runs import STEPS, accepted_settings, agree, probing, run
from specdiag.live.optimizers import is_from, refusal
from specdiag.live.parameters import ParamGroup
from specdiag.live.scaled_update import ScaledUpdate
from specdiag.live.treatment import BY_POSITION, ROUNDED

RateOf = Callable[[torch.Tensor, ParamGroup], float]
"""(parameter, its group) -> factor on the group's learning rate."""
_HIGH, _LOW = 2.5, 0.4
"""Factors of the probe: from step to step, and from one Parameter to the next."""


def is_proportional(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer's update, decay included, is proportional to its learning rate.

    Steps at changing multiples of the rate must give the same weights as steps at the rate whose updates are scaled.

    Args:
        optimizer: a torch optimizer. Nothing of it changes.

    Raises:
        UsageError: its step fails on small tensors.
    """
    with probing(optimizer, "lr"):
        _, setting = accepted_settings(optimizer)
        by_group = run(optimizer, setting, STEPS, rate=_alternating)
        by_update = run(optimizer, setting, STEPS, rate=_alternating, scaled=True)
    return all(map(agree, by_group.weights, by_update.weights))


def takes_rates_in_groups(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer's groups may be divided for some of its steps, each part with a rate of its own.

    Each Parameter must end where it ends if the whole optimizer has its rate in these steps.

    Args:
        optimizer: a torch optimizer. Nothing of it changes.

    Raises:
        UsageError: its step fails on small tensors.
    """
    divided = (1, 2)
    with probing(optimizer, "lr"):
        _, setting = accepted_settings(optimizer)
        whole = [run(optimizer, setting, STEPS, rate=_only_in(divided, factor)) for factor in (_HIGH, _LOW)]
        try:
            parts = run(optimizer, setting, STEPS, divided=divided, rate=_only_in(divided, _HIGH, _LOW))
        except Exception:  # noqa: BLE001 - optimizers raise all sorts of errors where they meet other groups
            return False
    wanted = [whole[i % 2].weights[i] for i in range(len(parts.weights))]
    return whole[0].state == parts.state and all(map(agree, wanted, parts.weights))


def divides_for_rates(optimizer: Optimizer) -> bool:
    """Choose how the learning rate of an optimizer's Parameters is changed.

    Args:
        optimizer: a torch optimizer with a learning rate in each group.

    Returns:
        True where its groups are divided for each step, False where the updates are scaled. Parameters in bfloat16
        and float16 prefer groups: there the update was rounded before it is scaled.

    Raises:
        UsageError: it allows neither.
    """
    is_rounded = any(p.dtype in ROUNDED for group in optimizer.param_groups for p in group["params"])
    scales = is_proportional(optimizer)
    if scales and not is_rounded:
        return False
    if not is_from(optimizer, BY_POSITION) and takes_rates_in_groups(optimizer):
        return True
    why = (
        "keeps its weights in a rounded type, where a scaled update is rounded twice, and its groups cannot be divided"
        if scales
        else "updates by no multiple of its learning rate (a probe on small tensors shows it), and its groups cannot "
        "be divided"
    )
    raise UsageError(refusal(optimizer, why, "lr"))


class RateStep:
    """Learning rates of one step. Begun before anything else changes the step, finished after everything else."""

    def __init__(self) -> None:
        """Begin with nothing that is changed."""
        self._divides: bool | None = None
        self._updates: list[ScaledUpdate] = []
        self._division: Division | None = None

    def ask(self, optimizer: Optimizer) -> None:
        """Find out how the optimizer's rates are changed, unless it is known.

        Args:
            optimizer: a torch optimizer.

        Raises:
            UsageError: see `divides_for_rates`.
        """
        if self._divides is None:
            self._divides = divides_for_rates(optimizer)

    def forget(self) -> None:
        """Ask again before the next step: a loaded state may have brought other settings."""
        self._divides = None

    def begin(self, optimizer: Optimizer, rate_of: RateOf) -> None:
        """Copy the weights whose update will be scaled, or divide the groups.

        Args:
            optimizer: within its step, before the update and its decay.
            rate_of: the factor of each Parameter.
        """
        self.ask(optimizer)
        rates = {p: rate_of(p, group) for group in optimizer.param_groups for p in group["params"]}
        if all(rate == 1 for rate in rates.values()):
            return
        if self._divides:
            self._division = Division(optimizer, lambda group: _parts(group, rates), "lr")
            return
        self._updates = [ScaledUpdate(p, rate) for p, rate in rates.items() if rate != 1 and p.grad is not None]

    def finish(self, optimizer: Optimizer) -> None:
        """Scale the updates, or put the user's groups back. Nothing happens where nothing was begun.

        Args:
            optimizer: whose step was begun.

        Raises:
            UsageError: the groups were divided, and the optimizer wrote different values into parts of one group.
        """
        updates, self._updates = self._updates, []
        for update in updates:
            update.finish()
        division, self._division = self._division, None
        if division is not None:
            division.join(optimizer)

    def cancel(self, optimizer: Optimizer) -> None:
        """Do the same after an exception: what the optimizer has updated is scaled, and the groups are put back.

        Args:
            optimizer: whose step was begun, or not.
        """
        division, self._division = self._division, None
        if division is not None:
            division.cancel(optimizer)
        self.finish(optimizer)

    def user_group(self, group: ParamGroup) -> ParamGroup:
        """Return the user's group of which a group of the step is a part.

        Args:
            group: of the optimizer, as it is now.
        """
        return group if self._division is None else self._division.whole_group(group)


def _alternating(step: int, _: int) -> float:
    return _LOW if step % 2 else _HIGH


def _only_in(steps: tuple[int, ...], *factors: float) -> Callable[[int, int], float]:
    """Return the factors of the Parameters in turn in some steps, and 1 in the others."""
    return lambda step, i: factors[i % len(factors)] if step in steps else 1.0


def _parts(group: ParamGroup, rates: dict[torch.Tensor, float]) -> list[ParamGroup]:
    """Divide a group into one for each rate."""
    members: dict[float, list[torch.Tensor]] = {}
    for parameter in group["params"]:
        members.setdefault(rates[parameter], []).append(parameter)
    if list(members) == [1.0]:
        return [group]
    return [
        group | {"params": parameters} | ({} if rate == 1 else {"lr": group["lr"] * rate})
        for rate, parameters in members.items()
    ]
