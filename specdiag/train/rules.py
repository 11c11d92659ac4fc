"""The decay rules that `--decay` names, each as a callback of the Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from specdiag.decay.plan import DecayPlan
from specdiag.errors import UsageError
from specdiag.train.callback import (
    AdaDecayCallback,
    AlphaDecayCallback,
    AWDCallback,
    LiveRuleCallback,
    ModuleAdaDecayCallback,
)
from specdiag.train.following import NoDecayCallback
from specdiag.train.plan_callback import DecayPlanCallback

_LIVE: dict[str, tuple[type[LiveRuleCallback], tuple[str, ...]]] = {
    "alphadecay": (AlphaDecayCallback, ("s1", "s2", "every", "mode", "rule", "basis", "first_update")),
    "awd": (AWDCallback, ()),
    "adadecay": (AdaDecayCallback, ("slope",)),
    "module-adadecay": (ModuleAdaDecayCallback, ("every", "slope")),
}
RULES = (*_LIVE, "uniform", "none")
FIRST = {"now": False, "gap": True}
"""By `first_update`: whether AlphaDecay has ratio 1 until all is measured in turn."""


def check_rule_options(rule: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError for an unknown rule, or for options that it does not have."""
    if rule not in (*RULES, "plan"):
        raise UsageError(f"unknown --decay '{rule}'; choose plan:FILE, {', '.join(RULES[:-1])} or {RULES[-1]}")
    known = _LIVE[rule][1] if rule in _LIVE else ()
    wrong = next((name for name in options if name not in known), None)
    if wrong is not None:
        owners = " or ".join(each for each, (_, names) in _LIVE.items() if wrong in names) or "no rule"
        raise UsageError(f"--{wrong.replace('_', '-')} belongs to --decay {owners}, not to {rule}")
    first = options.get("first_update", "now")
    if first not in FIRST:
        raise UsageError(f"unknown --first-update '{first}'; choose now or gap")


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
    first = given.pop("first_update", "now" if trained else "gap")
    if rule == "alphadecay":
        given["fresh"] = FIRST[first]
    return _LIVE[rule][0](**given)
