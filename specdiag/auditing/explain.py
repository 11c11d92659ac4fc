"""A check in words: the quantity, its threshold and their source, why it matters, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from specdiag.auditing.thresholds import Check, Need, changeable, no_such_check
from specdiag.auditing.wording import limit
from specdiag.errors import UsageError

_SEVERITIES = {"fail": "a failure", "warn": "a warning", "info": "information"}
_NEEDS: dict[Need, str] = {
    "report": "a saved report, or the checkpoint",
    "weights": "the checkpoint itself",
    "checkpoint": "the checkpoint itself, with its config.json",
    "randomize": "randomize=True",
    "baseline": "another source as baseline=",
    "decay": "weight_decay= and lr= of the run",
    "tokens": "the checkpoint itself, with tokens=",
    "alarms": "the checkpoint itself, with alarms=True",
    "adapter": "an adapter that was opened itself, with its adapter_config.json",
    "base": "an adapter, with its base model as base=",
    "transformers": "the checkpoint itself, with its config.json, and transformers; "
    "without it the first line of the verdict says so",
}


def explain(name: str, checks: Mapping[str, Check]) -> list[str]:
    """Explain a check in a few sentences.

    Args:
        name: its id, as it stands in a finding.
        checks: every check by id, with the thresholds that hold.

    Returns:
        The lines: measure, limit, need, reason, advice, source, and how to change it.

    Raises:
        UsageError: there is no such check; the message has the nearest names.
    """
    if name not in checks:
        raise UsageError(no_such_check(name, checks))
    check = checks[name]
    state = "" if check.enabled else " It is switched off."
    return [
        f"{check.id}: {check.metric}.",
        f"Finding: {_SEVERITIES[check.severity]} {_limit(check)}.{state}",
        f"Needs: {_NEEDS[check.needs]}.",
        f"Why: {check.why}.",
        f"What to do: {check.advice}.",
        f"Basis: {check.origin}.",
        f"To change it: [{check.id}] with {', '.join(changeable(check))} in the file of thresholds=.",
    ]


def _limit(check: Check) -> str:
    if check.threshold is None:
        return "whenever it occurs"
    least = "" if check.at_least is None else f" (at_least = {check.at_least})"
    return f"if the value is {check.fires} {limit(check, check.threshold)}{least}"
