"""Lookup of what a live optimizer does to a Parameter: how it decays it, and as what it is simulated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from specdiag.dynamics.updates import BETAS, MOMENTUM
from specdiag.dynamics.updates import Optimizer as Simulated
from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup
from specdiag.optim.method import DecayKind, UpdateRule
from specdiag.optim.optimizers.combined import stepped_by
from specdiag.optim.registry import METHODS
from specdiag.optim.update_rules import NO_METHODS

_RULES = (*(rule for method in METHODS.values() for rule in method.updates), *NO_METHODS)
_BY_CLASS = {rule.optimizer: rule for rule in _RULES if not isinstance(rule.optimizer, str)}
_BY_NAME = {
    rule.name: rule
    for rule in _RULES
    if isinstance(rule.optimizer, str) or rule.optimizer.__module__.startswith("torch.")
}
"""Other packages give their own versions of torch's optimizers the same names."""


@dataclass(frozen=True, slots=True)
class DecaySemantics:
    """Treatment of one Parameter by the optimizer that holds it.

    Attributes:
        decay: kind of its decay.
        optimizer: its name in `simulate`; None where no model covers it.
        momentum: as `simulate` takes it; None where it takes none.
        betas: as `simulate` takes them; None where it takes none.
        lr_scale: the simulated lr over the group's, which is Scion's radius. The simulated decay is divided by it.
    """

    decay: DecayKind
    optimizer: Simulated | None
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    lr_scale: float = 1.0


def torch_optimizer(optimizer: object) -> Optimizer:
    """Find the torch optimizer in wrappers such as accelerate's.

    Args:
        optimizer: a torch optimizer or a wrapper of one.

    Returns:
        The innermost optimizer.

    Raises:
        UsageError: there is none, so that nothing says when a step is taken; or a group has no lr.
    """
    inner = optimizer
    while not isinstance(inner, Optimizer) or isinstance(getattr(inner, "optimizer", None), Optimizer):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise UsageError(f"a {type(optimizer).__name__} has no step hooks of torch: its norms cannot be watched")
    if any(group.get("lr") is None for group in inner.param_groups):
        raise UsageError(f"a {type(inner).__name__} without lr makes its own: its decay cannot be told from its steps")
    return inner


def decay_kind(optimizer: Optimizer, group: ParamGroup) -> DecayKind:
    """Return the kind of a group's decay; an optimizer without record counts as decoupled."""
    rule = _rule(type(stepped_by(optimizer, group)))
    says = group.get("decoupled_weight_decay")
    if says is not None and (rule is None or rule.decay != "by weight"):
        return "decoupled" if says else "coupled"
    return "decoupled" if rule is None else rule.decay


def is_decoupled(optimizer: Optimizer, group: ParamGroup) -> bool:
    """Tell whether a group's decay acts on the weights, and not by way of the gradient."""
    return decay_kind(optimizer, group) != "coupled"


def removed(optimizer: Optimizer, group: ParamGroup) -> float:
    """Return eta, the fraction of the weights that the decay of one step takes; 0 where it takes no fraction of all."""
    if decay_kind(optimizer, group) != "decoupled":
        return 0.0
    rule = _rule(type(stepped_by(optimizer, group)))
    return (rule or _UNKNOWN).removed(group)


def decay_semantics(optimizer: Optimizer, group: ParamGroup, shape: torch.Size) -> DecaySemantics:
    """Collect what `simulate` needs of the optimizer's settings.

    Args:
        optimizer: a torch optimizer.
        group: that holds the Parameter.
        shape: of the Parameter.

    Returns:
        The kind of decay, and the settings of the simulated optimizer, of a class that has a record of its own:
        a subclass may step in another way.
    """
    kind = type(stepped_by(optimizer, group))
    rule, decay = _rule(kind), decay_kind(optimizer, group)
    name = rule.simulated(group, shape) if rule is not None and rule.name == kind.__name__ else None
    if name is None:
        return DecaySemantics(decay, None)
    momentum = float(group["momentum"]) if name in MOMENTUM else None
    betas = (float(group["betas"][0]), float(group["betas"][1])) if name in BETAS else None
    return DecaySemantics(decay, name, momentum, betas, float(group.get("radius", 1.0)))


_UNKNOWN = UpdateRule("", "decoupled")


def _rule(kind: type[Optimizer]) -> UpdateRule | None:
    """Return the record of a class, or of the nearest base that has one."""
    rules = (_BY_CLASS.get(base) or _BY_NAME.get(base.__name__) for base in kind.__mro__)
    return next((rule for rule in rules if rule is not None), None)
