"""Dependence of a plan on choices: the shape of its matrices, the measure of a tail, the tail fraction."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import correlation, median

from specdiag.decay.targets import DecayTarget


def shape_share(pairs: Sequence[tuple[float, float | None]]) -> float | None:
    """Compute the share of a plan that shapes explain: R^2 between its ratios and those of random weights.

    Args:
        pairs: for each Parameter its ratio, and the ratio of random weights of its shape, None where it has none.

    Returns:
        0 to 1. 0 where all random weights have the same ratio. None with fewer than two pairs, or where the plan's
        ratios are all equal.
    """
    known = [(ratio, random) for ratio, random in pairs if random is not None]
    if len(known) < 2 or len({ratio for ratio, _ in known}) == 1:
        return None
    if len({random for _, random in known}) == 1:
        return 0.0
    ours, theirs = zip(*known, strict=True)
    return correlation(ours, theirs) ** 2


def agreement(targets: Sequence[DecayTarget]) -> float | None:
    """Correlate square_alpha with rho; None where fewer than three have both, or one of them is the same for all.

    Args:
        targets: Parameters of a plan.
    """
    pairs = [(target.mean("square_alpha"), target.mean("rho")) for target in targets]
    known = [(square, rho) for square, rho in pairs if square is not None and rho is not None]
    if len(known) < 3 or any(len(set(values)) == 1 for values in zip(*known, strict=True)):
        return None
    return correlation(*zip(*known, strict=True))


def tail_shift(low: Sequence[float] | None, high: Sequence[float] | None) -> float | None:
    """Compute the median distance of the ratios by two tail fractions; None where there are none.

    Args:
        low: ratios by `alpha_25`.
        high: those by `alpha_75`, in the same order.
    """
    return None if low is None or high is None else median(abs(a - b) for a, b in zip(low, high, strict=True))
