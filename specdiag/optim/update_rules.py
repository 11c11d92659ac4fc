"""Update rules of torch's optimizers, of Scion, and of classes that only other packages have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import optim
from torch.optim import Optimizer

from specdiag.dynamics.updates import Optimizer as Simulated
from specdiag.live.parameters import ParamGroup
from specdiag.optim.method import UpdateRule
from specdiag.optim.optimizers.lmo import auto
from specdiag.optim.optimizers.scion import Scion, removed_fraction

_SCION: dict[str, Simulated] = {
    "sign": "scion-sign", "spectral": "scion-spectral", "bias-rms": "scion-l2",
}  # fmt: skip
"""Name in `specdiag.simulate`, by LMO."""


def always(name: Simulated) -> Callable[[ParamGroup, torch.Size], Simulated | None]:
    """Return an `UpdateRule.simulated` that gives one name, but None for AMSGrad, which no model covers.

    Args:
        name: of the optimizer in `specdiag.simulate`.
    """
    return lambda group, _: None if group.get("amsgrad") else name


def _adam(group: ParamGroup, shape: torch.Size) -> Simulated | None:
    decayed = float(group.get("weight_decay", 0.0)) > 0
    return None if (decayed and not group.get("decoupled_weight_decay")) or group.get("amsgrad") else "adamw"


def _sgd(group: ParamGroup, shape: torch.Size) -> Simulated | None:
    return None if group.get("dampening") or group.get("nesterov") else "sgdm"


def _muon(group: ParamGroup, shape: torch.Size) -> Simulated | None:
    return "muon" if group.get("adjust_lr_fn") in (None, "original") else None


def _scion(group: ParamGroup, shape: torch.Size) -> Simulated | None:
    lmo = auto(shape) if group["lmo"] == "auto" else group["lmo"]
    return _SCION.get(lmo) if not group["transpose"] and len(shape) == 2 else None


ADAM = UpdateRule(optim.Adam, "coupled", _adam)
ADAMW = UpdateRule(optim.AdamW, "decoupled", always("adamw"))
SGD = UpdateRule(optim.SGD, "coupled", _sgd)
MUON = UpdateRule("Muon", "decoupled", _muon)
SCION = UpdateRule(Scion, "decoupled", _scion, removed_fraction)

_COUPLED: tuple[type[Optimizer], ...] = (
    optim.Adadelta, optim.Adagrad, optim.Adamax, optim.ASGD, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Rprop,
)  # fmt: skip
NO_METHODS = (*(UpdateRule(kind, "coupled") for kind in _COUPLED), UpdateRule("Lion", "decoupled", always("lion")))
"""Rules of classes that no method of the registry makes."""
