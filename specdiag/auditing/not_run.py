"""Checks that did not run, in a line or in full."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from specdiag.text.counts import counted
from specdiag.text.printable import printable

_FEW_OF_A_FAMILY = 4
_FEW_OF_A_REASON = 2
"""Checks that are named where one reason keeps them from running."""
_NEEDS = "needs "
_FAMILIES = ({"baseline"}, {"adapter"})


def not_run(reasons: Mapping[str, str], *, whole: bool) -> str:
    """Say which checks did not run.

    Args:
        reasons: by check.
        whole: True to name every check with its reason; False for what would make more of them run, and other reasons
            that hold for many.

    Returns:
        A sentence; empty where every check ran.
    """
    by_reason: dict[str, list[str]] = defaultdict(list)
    for check, reason in reasons.items():
        by_reason[reason].append(check)
    if not by_reason:
        return ""
    if whole:
        told = (f"{collapsed(checks, whole=True)} ({printable(reason)})" for reason, checks in by_reason.items())
        return f"Not checked: {'; '.join(told)}."
    needs: dict[str, int] = defaultdict(int)
    others: list[str] = []
    n_rest = 0
    for reason, checks in by_reason.items():
        if reason.startswith(_NEEDS):
            needs[printable(reason.removeprefix(_NEEDS).partition(" where ")[0])] += len(checks)
        elif len(checks) > _FEW_OF_A_REASON and _family(checks) is None:
            others.append(f"{counted(len(checks), 'check')} ({printable(reason)})")
        else:
            n_rest += len(checks)
    more = [f"{need} ({n})" for need, n in sorted(needs.items(), key=lambda item: -item[1])]
    told = [f"{sum(needs.values())} checks that need {', '.join(more)}"] if more else []
    told += others
    told += [f"{n_rest} for other reasons (--all)"] if n_rest else []
    return f"Not checked: {'; '.join(told)}."


def collapsed(checks: list[str], *, whole: bool) -> str:
    """List ids of checks, or count them. All those against a baseline, or of adapters, are written as `baseline_*`.

    Args:
        checks: ids.
        whole: True to name each.
    """
    family = _family(checks)
    if family is not None:
        return f"{family}_*"
    return ", ".join(checks) if whole or len(checks) <= _FEW_OF_A_REASON else f"{len(checks)} checks"


def _family(checks: list[str]) -> str | None:
    beginnings = {check.partition("_")[0] for check in checks}
    return beginnings.pop() if len(checks) > _FEW_OF_A_FAMILY and beginnings in _FAMILIES else None
