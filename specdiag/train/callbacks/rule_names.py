"""The decay rules by name and what each can be told, without loading a trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specdiag import checks
from specdiag.errors import UsageError

OPTIONS: dict[str, tuple[str, ...]] = {
    "alphadecay": ("s1", "s2", "every", "mode", "rule", "basis", "measure_first"),
    "awd": (),
    "adadecay": ("slope",),
    "module-adadecay": ("every", "slope"),
    "uniform": (),
    "none": (),
}
"""By rule, what `[alphadecay]` of a recipe may hold."""
PLAN = "plan"
"""The rule of a run whose decays are those of a plan."""


def check_rule_options(rule: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError for an unknown rule, or for options that it does not have."""
    if rule not in (*OPTIONS, PLAN):
        raise UsageError(f"unknown --decay '{rule}'; choose plan:FILE, {', '.join(OPTIONS)}")
    known = OPTIONS.get(rule, ())
    wrong = next((name for name in options if name not in known), None)
    if wrong is not None:
        owners = " or ".join(each for each, names in OPTIONS.items() if wrong in names) or "no rule"
        raise UsageError(f"--{wrong.replace('_', '-')} belongs to --decay {owners}, not to {rule}")
    if "measure_first" in options:
        checks.flag("measure_first", options["measure_first"])
