"""From exponents to ratios, by the rules of `specdiag.recommend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from specdiag.decay import assignment
from specdiag.errors import UsageError

LiveRule = Literal["linear", "sqrt", "log2", "sigmoid", "uniform"]


def ratios(
    rule: LiveRule, values: Sequence[float | None], layers: Sequence[int | None], s1: float, s2: float
) -> list[float]:
    """The ratio of each Parameter; see `specdiag.decay.assignment` for the rules.

    Args:
        rule: which.
        values: exponent of each Parameter, None for one that has none: ratio 1.
        layers: block index of each, for `sigmoid`.
        s1: ratio of the smallest exponent, for `linear`.
        s2: ratio of the largest.
    """
    match rule:
        case "linear":
            return assignment.linear(values, s1, s2)
        case "sqrt":
            return assignment.square_root(values)
        case "log2":
            return assignment.log2(values)
        case "sigmoid":
            return assignment.sigmoid(values, layers)
        case "uniform":
            return [1.0] * len(values)


def largest_ratio(rule: LiveRule, s2: float) -> float:
    """A bound on the ratios of a rule: that of `sqrt` and `log2` is not sharp."""
    return {"linear": s2, "uniform": 1.0}.get(rule, 2.0)


def check_rule(rule: str, s1: float, s2: float) -> None:
    """Raise UsageError for an unknown rule or ratios out of order."""
    if rule not in get_args(LiveRule):
        raise UsageError(f"unknown rule '{rule}'; choose from {', '.join(get_args(LiveRule))}")
    if not 0 <= s1 <= s2:
        raise UsageError(f"s1={s1} and s2={s2} must be ratios with 0 <= s1 <= s2; the paper's are 0.67 and 3")
