"""What an optimizer does to a Parameter, as far as its norm goes: how it decays it, and as what it is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from specdiag.dynamics.updates import Optimizer as Simulated
from specdiag.errors import UsageError
from specdiag.optim.optimizers.combined import stepped_by
from specdiag.optim.optimizers.lmo import auto
from specdiag.optim.optimizers.scion import Scion, removed_share
from specdiag.optim.rules.precision import is_decoupled

DecayKind = Literal["decoupled", "coupled", "by weight"]
"""Whether decay takes lr x decay off all weights, goes through the gradient, or is of a size that the step finds."""

_BY_WEIGHT = ("AdaDecay",)
_COUPLED = ("AWD",)
_DIRECT: dict[str, Simulated] = {
    "AdamW": "adamw", "Adam": "adamw", "RenormalizedAdamW": "adamw-renormalized", "Lion": "lion", "Muon": "muon",
    "SGD": "sgdm",
}  # fmt: skip
_LMOS: dict[str, Simulated] = {
    "sign": "scion-sign", "spectral": "scion-spectral", "bias-rms": "scion-l2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Treatment:
    """Of one Parameter, by the optimizer that holds it."""

    decay: DecayKind
    optimizer: Simulated | None
    """Its name in `simulate`; None where no model covers it."""
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    lr_scale: float = 1.0
    """The simulated lr over the group's: Scion's radius. The simulated decay is divided by it."""


def torch_optimizer(optimizer: Any) -> Optimizer:
    """The torch optimizer in wrappers such as accelerate's.

    Raises:
        UsageError: there is none, so that nothing says when a step is taken; or a group has no lr.
    """
    held = optimizer
    while not isinstance(held, Optimizer) or isinstance(getattr(held, "optimizer", None), Optimizer):
        held = getattr(held, "optimizer", None)
        if held is None:
            raise UsageError(f"a {type(optimizer).__name__} has no step hooks of torch: its norms cannot be watched")
    if any(group.get("lr") is None for group in held.param_groups):
        raise UsageError(f"a {type(held).__name__} without lr makes its own: its decay cannot be told from its steps")
    return held


def decay_kind(optimizer: Optimizer, group: dict[str, Any]) -> DecayKind:
    """By the optimizer's class; one that is not known is taken to be decoupled."""
    names = {base.__name__ for base in type(stepped_by(optimizer, group)).__mro__}
    if names & set(_BY_WEIGHT):
        return "by weight"
    return "coupled" if names & set(_COUPLED) or not is_decoupled(optimizer, group) else "decoupled"


def removed(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """eta: the fraction of the weights that the decay of one step takes, 0 where it takes no fraction of all."""
    if decay_kind(optimizer, group) != "decoupled":
        return 0.0
    if isinstance(stepped_by(optimizer, group), Scion):
        return removed_share(group)
    return float(group["lr"]) * float(group.get("weight_decay", 0.0))


def treatment(optimizer: Optimizer, group: dict[str, Any], shape: torch.Size) -> Treatment:
    """What `simulate` needs of the optimizer's settings.

    Args:
        optimizer: a torch optimizer.
        group: that holds the Parameter.
        shape: of the Parameter.
    """
    optimizer = stepped_by(optimizer, group)
    kind, name = decay_kind(optimizer, group), type(optimizer).__name__
    if isinstance(optimizer, Scion):
        lmo = auto(shape) if group["lmo"] == "auto" else group["lmo"]
        fits = not group["transpose"] and len(shape) == 2
        return Treatment(
            kind, _LMOS.get(lmo) if fits else None, momentum=1 - float(group["momentum"]), lr_scale=group["radius"]
        )
    known = _DIRECT.get(name)
    decayed = float(group.get("weight_decay", 0.0)) > 0
    refused = (
        (name == "Adam" and kind == "coupled" and decayed)
        or (known == "muon" and group.get("adjust_lr_fn") not in (None, "original"))
        or (known == "sgdm" and (group.get("dampening") or group.get("nesterov")))
        or group.get("amsgrad")
    )
    if known is None or refused:
        return Treatment(kind, None)
    momentum = float(group["momentum"]) if known in ("sgdm", "muon") else None
    betas = (float(group["betas"][0]), float(group["betas"][1])) if "betas" in group else None
    return Treatment(kind, known, momentum, betas)
