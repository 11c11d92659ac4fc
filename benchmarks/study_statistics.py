"""Statistics of benchmarks/study.py: paired differences with simultaneous intervals, as in docs/study.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.optimize import brentq
from scipy.stats import nct, t
from study_design import ARMS, COMPARISONS, CONFIDENCE, HEADLINE_SIZES, MARGIN
from study_order import tested

N_INTERVALS = len(COMPARISONS) * len(HEADLINE_SIZES)
_POWER = 0.8


@dataclass(frozen=True, slots=True)
class Difference:
    """Held-out loss of an arm less that of its rival, in nats a token, paired by seed.

    Attributes:
        values: by seed.
        half: half the width of the interval; infinite for fewer than two seeds.
        seen: difference that this number of seeds, with this spread, finds with probability 0.8.
    """

    values: tuple[float, ...]
    half: float
    seen: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def verdict(self) -> str:
        """Answer that the interval gives, in the words that docs/study.md fixed."""
        low, high = self.mean - self.half, self.mean + self.half
        if high < 0:
            return "better"
        if low > 0:
            return "worse"
        if low > -MARGIN and high < MARGIN:
            return f"no difference of {MARGIN:g}"
        return "undecided"


def difference(losses: Mapping[str, float], size: str, arm: str, rival: str, *, intervals: int) -> Difference | None:
    """Compare two arms over the seeds that both have.

    Args:
        losses: held-out loss by key of the cell.
        size: name of the size.
        arm: the one.
        rival: the other.
        intervals: number of intervals that hold together (Bonferroni); 1 for one alone.

    Returns:
        None without a seed that both have, or where a run diverged.
    """
    pairs = [(tested(size, losses, arm, s), tested(size, losses, rival, s)) for s in ARMS[arm].seeds]
    values = tuple(
        losses[a.key] - losses[b.key]
        for a, b in pairs
        if a is not None and b is not None and a.key in losses and b.key in losses
    )
    if not values or not all(map(math.isfinite, values)):
        return None
    return interval(values, (1 - CONFIDENCE) / intervals)


def interval(values: Sequence[float], level: float) -> Difference:
    """Return Student's interval of a mean.

    Args:
        values: at least one.
        level: probability that the interval misses the mean.
    """
    n = len(values)
    if n < 2:
        return Difference(tuple(values), math.inf, math.inf)
    error = stdev(values) / math.sqrt(n)
    critical = float(t.ppf(1 - level / 2, n - 1))
    found = brentq(lambda shift: float(nct.sf(critical, n - 1, shift)) - _POWER, 0, 1000)
    return Difference(tuple(values), critical * error, float(found) * error)


def share_of_shape(matrices: Mapping[str, Sequence[float]], shapes: Mapping[str, object]) -> float:
    """Return the share of the variance of alpha between modules that their shapes explain.

    Args:
        matrices: alpha first, by name.
        shapes: what random matrices of the same shape share, by name.
    """
    names = [name for name in matrices if name in shapes]
    alphas = [matrices[name][0] for name in names]
    mean = fmean(alphas)
    groups = {
        shape: fmean(a for n, a in zip(names, alphas, strict=True) if shapes[n] == shape)
        for shape in set(shapes.values())
    }
    total = sum((a - mean) ** 2 for a in alphas)
    return sum((groups[shapes[n]] - mean) ** 2 for n in names) / total if total else math.nan


def merged(matrices: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Average the figures of matrices over runs, by name."""
    return {
        name: [fmean(column) for column in zip(*(each[name] for each in matrices), strict=True)] for name in matrices[0]
    }
