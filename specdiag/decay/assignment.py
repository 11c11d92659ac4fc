"""Rules that give each module a multiple of the base weight decay, from its exponent (AlphaDecay, arXiv 2506.14562).

Every rule takes the exponents of the participating modules and gives their ratios in the same order. A module without
a finite exponent (None, NaN, infinity) gets ratio 1 and does not move the others. Larger alpha (lighter tail) means
larger decay. Plain Python: a plan from a saved report must not wait for numpy.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from statistics import fmean, pstdev
from typing import Literal, get_args

from specdiag.errors import UsageError
from specdiag.text import checks

Values = Sequence[float | None]
Rule = Literal["linear", "sqrt", "log2", "sigmoid", "uniform", "none"]
MOST_RATIO = 1e6
"""Largest ratio that is accepted. No useful plan comes near it."""


def assign(rule: Rule, values: Values, layers: Sequence[Hashable], s1: float, s2: float) -> list[float]:
    """Apply the rule of this name.

    Args:
        rule: one of the rules below; `uniform` gives ratio 1 to all, `none` gives 0.
        values: exponent, or other value, of each module; None where there is none.
        layers: block of each module, for `sigmoid`.
        s1: ratio of the smallest value, for `linear`.
        s2: ratio of the largest value, for `linear`.

    Returns:
        The ratio of each module, in the order of `values`.
    """
    match rule:
        case "linear":
            return linear(values, s1, s2)
        case "sqrt":
            return square_root(values)
        case "log2":
            return log2(values)
        case "sigmoid":
            return sigmoid(values, layers)
        case "uniform":
            return [1.0] * len(values)
        case "none":
            return [0.0] * len(values)


def check_rule(rule: str, s1: float, s2: float) -> tuple[float, float]:
    """Check a rule and its ratios.

    Args:
        rule: name of a rule.
        s1: ratio of the smallest value.
        s2: ratio of the largest value.

    Returns:
        `s1` and `s2` as floats.

    Raises:
        UsageError: the rule is unknown, or not 0 <= s1 <= s2 <= `MOST_RATIO`.
    """
    checks.one_of("rule", rule, get_args(Rule))
    low, high = (checks.number(name, s, least=0, most=MOST_RATIO) for name, s in (("s1", s1), ("s2", s2)))
    if low > high:
        raise UsageError(f"s1 {s1} and s2 {s2} must be ratios with 0 <= s1 <= s2; the paper's are 0.67 and 3")
    return low, high


def largest_ratio(rule: Rule, s2: float) -> float:
    """Bound the ratios of a rule from above, for a warning.

    Args:
        rule: name of a rule.
        s2: ratio of the largest value, for `linear`.

    Returns:
        The exact bound of `linear`, `sigmoid`, `uniform` and `none`. For `sqrt` and `log2` it is 2, which ratios rarely
        exceed.
    """
    return {"linear": s2, "uniform": 1.0, "none": 0.0}.get(rule, 2.0)


def linear(alphas: Values, s1: float = 0.67, s2: float = 3.0) -> list[float]:
    """Equation 3: (alpha - min)/(max - min) (s2 - s1) + s1. Equal exponents give ratio 1.

    The rule is not mean-preserving: for evenly spread exponents it raises the total decay where s1 + s2 > 2.

    Args:
        alphas: exponent of each module.
        s1: ratio of the smallest exponent.
        s2: ratio of the largest exponent.
    """
    known = finite(alphas)
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low == high:
        return [1.0] * len(alphas)
    return _map_finite(alphas, lambda alpha: (alpha - low) / (high - low) * (s2 - s1) + s1)


def linear_reference(alphas: Sequence[float], s1: float = 0.67, s2: float = 3.0) -> list[float]:
    """`linear` as the released code computes it (numpy.interp), for comparison with it.

    Equal exponents give s2. A NaN in the first place makes every ratio NaN, elsewhere only its own.

    Args:
        alphas: exponent of each module.
        s1: ratio of the smallest exponent.
        s2: ratio of the largest exponent.
    """
    # The released code takes Python's min and max, which keep a leading NaN and drop a later one.
    low, high = min(alphas), max(alphas)
    if low == high:
        return [s2] * len(alphas)
    slope = (s2 - s1) / (high - low)
    return [s2 if alpha == high else s1 if alpha == low else slope * (alpha - low) + s1 for alpha in alphas]


def square_root(alphas: Values) -> list[float]:
    """sqrt(alpha)/mean sqrt(alpha): mean-preserving and nearly flat.

    Args:
        alphas: exponent of each module, 0 or more.
    """
    return _divide_by_mean(alphas, math.sqrt)


def log2(alphas: Values) -> list[float]:
    """log2(alpha)/mean log2(alpha): mean-preserving.

    Args:
        alphas: exponent of each module, above 1.
    """
    return _divide_by_mean(alphas, math.log2)


def sigmoid(alphas: Values, layers: Sequence[Hashable], beta: float = 4.0) -> list[float]:
    """2/(1 + exp(-beta z)), z the exponent standardised within its layer (population deviation + 1e-8).

    Args:
        alphas: exponent of each module.
        layers: layer of each module.
        beta: steepness; 4 in the paper.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for alpha, layer in zip(alphas, layers, strict=True):
        members[layer] += finite([alpha])
    ratios: list[float] = []
    for alpha, layer in zip(alphas, layers, strict=True):
        alphas_here = members[layer]
        ratios += _map_finite(
            [alpha],
            lambda a, alphas_here=alphas_here: (
                2 / (1 + math.exp(-beta * (a - fmean(alphas_here)) / _spread(alphas_here)))
            ),
        )
    return ratios


def clipped(values: Values, low: float, high: float) -> list[float | None]:
    """Move values beyond two percentiles to these.

    Args:
        values: of each module; None, NaN or infinity where there is none.
        low: lower percentile, 0 to 100, with linear interpolation.
        high: upper percentile.

    Returns:
        The values in the same order; None for those that are missing or not finite. Unchanged where none is finite.
    """
    known = sorted(finite(values))
    if not known:
        return list(values)
    bottom, top = _percentile(known, low), _percentile(known, high)
    return [None if v is None or not math.isfinite(v) else min(max(v, bottom), top) for v in values]


def finite(values: Values) -> list[float]:
    """Return the values that are neither missing nor NaN nor infinite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def _spread(values: Sequence[float]) -> float:
    return pstdev(values) + 1e-8


def _percentile(ordered: Sequence[float], percent: float) -> float:
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _divide_by_mean(alphas: Values, function: Callable[[float], float]) -> list[float]:
    known = [function(alpha) for alpha in finite(alphas)]
    mean = fmean(known) if known else 1.0
    return _map_finite(alphas, lambda alpha: function(alpha) / mean)


def _map_finite(alphas: Values, ratio: Callable[[float], float]) -> list[float]:
    return [1.0 if alpha is None or not math.isfinite(alpha) else ratio(alpha) for alpha in alphas]
