"""Application of a plan of learning rates: groups for a new optimizer, or ratios on a live one."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from specdiag.decay.plan_groups import fit
from specdiag.errors import UsageError
from specdiag.live.attaching import attach
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.live.parameters import ParamGroup, live_parameters, untied
from specdiag.rates.plan import RatePlan
from specdiag.text import checks
from specdiag.text.names import listed


def param_groups(plan: RatePlan, model: nn.Module, *, lr: float | None = None) -> list[ParamGroup]:
    """Make groups for a new optimizer; the code of `RatePlan.param_groups`.

    Args:
        plan: the plan.
        model: that will be trained.
        lr: base rate; None for that of the plan.

    Raises:
        UsageError: no base rate is known, or the plan does not fit the model.
    """
    base = plan.base_lr if lr is None else checks.number("lr", lr, least=0)
    if base is None:
        raise UsageError("the plan has no base learning rate: give one, as in param_groups(model, lr=3e-4)")
    parameters = live_parameters(model)
    ratios = {parameters[name]: entry.ratio for name, entry in fit(plan, parameters).items()}
    members: dict[float, list[nn.Parameter]] = defaultdict(list)
    for parameter in untied(parameters).values():
        if parameter.requires_grad:
            members[ratios.get(parameter, 1.0) * base].append(parameter)
    return [{"params": members[rate], "lr": rate} for rate in sorted(members, reverse=True)]


def apply(plan: RatePlan, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Apply the ratios to a live optimizer; the code of `RatePlan.apply`.

    Args:
        plan: the plan.
        optimizer: built over `model`'s parameters.
        model: names the parameters.

    Raises:
        UsageError: the plan does not fit the model or the optimizer, or the optimizer takes no rate for a Parameter.
    """
    parameters = live_parameters(model)
    fitted = fit(plan, parameters)
    held = {p for each in unwrap_optimizers(optimizer, "lr") for group in each.param_groups for p in group["params"]}
    missing = [name for name in fitted if parameters[name].requires_grad and parameters[name] not in held]
    if missing:
        raise UsageError(
            f"the optimizer lacks {listed(missing, 3)} of {len(fitted)} Parameters of the plan: was it built over this "
            "model?"
        )
    ratios: dict[torch.Tensor, float] = {parameters[name]: entry.ratio for name, entry in fitted.items()}
    attach(optimizer, "rate", "RatePlan.apply", lambda p, _: ratios.get(p, 1.0), replace=True)
