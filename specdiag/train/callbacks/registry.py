"""Decay rules by name, their options, and the callbacks of the Trainer that apply them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from specdiag.decay.plan import DecayPlan
from specdiag.errors import UsageError
from specdiag.text import checks

if TYPE_CHECKING:
    from transformers import TrainerCallback

OPTIONS: dict[str, tuple[str, ...]] = {
    "alphadecay": ("s1", "s2", "every", "mode", "rule", "basis", "measure_first"),
    "alphalr": ("s1", "s2", "every", "mode", "basis", "measure_first", "until", "blend", "per", "preserve_mean"),
    "awd": (),
    "adadecay": ("slope",),
    "module-adadecay": ("every", "slope"),
    "uniform": (),
    "none": (),
}
"""Names of the options that `[alphadecay]` of a recipe may have, by rule."""
NOTES: dict[str, str] = {
    "alphalr": "AlphaLR multiplies learning rates, and with them decoupled decay. Its effect on the loss was not "
    "tested here. Its ratios raise the mean rate: compare it with a higher uniform rate."
}
"""Sentences to say before a run of a rule."""
PLAN = "plan"
"""Name of the rule that applies a plan."""


def check_rule_options(rule: str, options: Mapping[str, object]) -> None:
    """Check a rule's name and the names of its options.

    Args:
        rule: name of the rule.
        options: options as in a recipe.

    Raises:
        UsageError: the rule is unknown, does not have one of the options, or `measure_first` is no truth value.
    """
    if rule not in (*OPTIONS, PLAN):
        raise UsageError(f"unknown decay='{rule}'; choose plan:FILE, {', '.join(OPTIONS)}")
    known = OPTIONS.get(rule, ())
    wrong = next((name for name in options if name not in known), None)
    if wrong is not None:
        owners = " or ".join(f"decay={each}" for each, names in OPTIONS.items() if wrong in names) or "no decay"
        raise UsageError(f"{wrong}= belongs to {owners}, not to {rule}")
    if "measure_first" in options:
        checks.flag("measure_first", options["measure_first"])


def rule_callback(
    rule: str, options: Mapping[str, object], plan: DecayPlan | None, *, trained: bool, steps_total: int
) -> TrainerCallback | None:
    """Make the callback that applies a rule. This loads transformers.

    Args:
        rule: name of the rule.
        options: options as in a recipe.
        plan: plan of the rule `plan`; None for other rules.
        trained: True if the weights were trained before: then AlphaDecay measures before the first step.
        steps_total: steps of the whole run. AlphaLR measures in the first fifth of them, as its released code does.

    Returns:
        The callback; None if the optimizer's own decay is used.
    """
    from specdiag.train.callbacks import live_rules
    from specdiag.train.callbacks.plan import DecayPlanCallback
    from specdiag.train.callbacks.run_log import NoDecayCallback

    live: dict[str, type[live_rules.LiveRuleCallback]] = {
        "alphadecay": live_rules.AlphaDecayCallback,
        "alphalr": live_rules.AlphaLRCallback,
        "awd": live_rules.AWDCallback,
        "adadecay": live_rules.AdaDecayCallback,
        "module-adadecay": live_rules.ModuleAdaDecayCallback,
    }
    if rule == "none":
        return NoDecayCallback()
    if rule not in live:
        return None if plan is None else DecayPlanCallback(plan)
    settings = dict(options)
    if rule == "alphadecay":
        settings.setdefault("measure_first", trained)
    if rule == "alphalr":
        settings.setdefault("until", steps_total // 5)
    return live[rule](**settings)
