"""The decay rules that `--decay` names, each as a callback of the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from specdiag.decay.plan import DecayPlan
from specdiag.train.callbacks.live_rules import (
    AdaDecayCallback,
    AlphaDecayCallback,
    AWDCallback,
    LiveRuleCallback,
    ModuleAdaDecayCallback,
)
from specdiag.train.callbacks.plan import DecayPlanCallback
from specdiag.train.callbacks.run_log import NoDecayCallback

_LIVE: dict[str, type[LiveRuleCallback]] = {
    "alphadecay": AlphaDecayCallback,
    "awd": AWDCallback,
    "adadecay": AdaDecayCallback,
    "module-adadecay": ModuleAdaDecayCallback,
}


def rule_callback(
    rule: str, options: Mapping[str, Any], plan: DecayPlan | None, *, trained: bool
) -> TrainerCallback | None:
    """What applies the rule; None where the optimizer's own decay stands.

    Args:
        rule: by its name.
        options: as in a recipe.
        plan: of the rule `plan`.
        trained: whether the weights come from a training run: then AlphaDecay measures before the first step.
    """
    if rule == "none":
        return NoDecayCallback()
    if rule not in _LIVE:
        return None if plan is None else DecayPlanCallback(plan)
    given = dict(options)
    if rule == "alphadecay":
        given.setdefault("measure_first", trained)
    return _LIVE[rule](**given)
