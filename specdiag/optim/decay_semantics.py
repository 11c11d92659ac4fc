"""Lookup of what a live optimizer does to a Parameter: its kind of decay, and its name and settings in `simulate`."""

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
"""By the bare name, for other packages give their own versions of torch's optimizers the same names."""


@dataclass(frozen=True, slots=True)
class DecaySemantics:
    """Decay and update of one Parameter by its optimizer.

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
        UsageError: there is no torch optimizer, and so no step hook; or a group has no lr.
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
    """Return the kind of a group's decay.

    Args:
        optimizer: a torch optimizer. One without an update rule counts as decoupled.
        group: of its groups. Its own `decoupled_weight_decay` overrides the rule, but for decay by weight.
    """
    rule = _rule(type(stepped_by(optimizer, group)))
    is_decoupled = group.get("decoupled_weight_decay")
    if is_decoupled is not None and (rule is None or rule.decay != "by weight"):
        return "decoupled" if is_decoupled else "coupled"
    return "decoupled" if rule is None else rule.decay


def is_decoupled(optimizer: Optimizer, group: ParamGroup) -> bool:
    """Tell whether a group's decay acts on the weights directly, and not through the gradient.

    Args:
        optimizer: a torch optimizer.
        group: of its groups.
    """
    return decay_kind(optimizer, group) != "coupled"


def removed(optimizer: Optimizer, group: ParamGroup) -> float:
    """Return eta, the fraction of the weights that the decay of one step removes.

    Args:
        optimizer: a torch optimizer.
        group: of its groups, with the lr and decay of the step.

    Returns:
        eta; 0 for decay that is coupled or differs from weight to weight.
    """
    if decay_kind(optimizer, group) != "decoupled":
        return 0.0
    rule = _rule(type(stepped_by(optimizer, group)))
    return (rule or _UNKNOWN).removed(group)


def decay_semantics(optimizer: Optimizer, group: ParamGroup, shape: torch.Size) -> DecaySemantics:
    """Collect the settings of an optimizer that `simulate` needs.

    Args:
        optimizer: a torch optimizer.
        group: of its groups, the one with the Parameter.
        shape: of the Parameter.

    Returns:
        The kind of decay, and the settings of the simulated optimizer. These are None for a subclass without an update
        rule of its own, which may step in another way than its base.
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
    """Return the update rule of a class, or of its nearest base that has one; None where none has."""
    rules = (_BY_CLASS.get(base) or _BY_NAME.get(base.__name__) for base in kind.__mro__)
    return next((rule for rule in rules if rule is not None), None)
