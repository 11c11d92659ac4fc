"""Limits on change: which matrices moved further than a pipeline allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from specdiag.comparison.records import METRICS, Comparison, ModuleChange
from specdiag.errors import UsageError
from specdiag.text.names import listed

_OF_DELTA = {
    "relative_change": "relative_change", "cosine_distance": "cosine_distance", "delta_alpha": "alpha",
    "delta_stable_rank": "stable_rank", "delta_spectral_norm": "spectral_norm",
    "delta_frobenius_norm": "frobenius_norm",
}  # fmt: skip
_ANGLES = ("left_angle", "right_angle")
UNMATCHED = "unmatched"

LIMITS: tuple[str, ...] = (*METRICS, *_OF_DELTA, *_ANGLES, UNMATCHED)
"""Names that a limit may have: |change| of a metric, changes of the weights, the number of unmatched matrices."""


class Excess(NamedTuple):
    """A limit that is exceeded; `value` is None where only the matrix before has the metric."""

    metric: str
    module: str
    value: float | None
    limit: float


def parse_limits(texts: list[str]) -> dict[str, float]:
    """Read limits on change.

    Args:
        texts: several `METRIC=VALUE`.

    Returns:
        The limits by metric, in the same order.

    Raises:
        UsageError: one is not of that form, its value is negative or not finite, or two are of one metric.
    """
    limits: dict[str, float] = {}
    for text in texts:
        metric, _, value = text.partition("=")
        if metric not in LIMITS:
            raise UsageError(f"fail_above='{text}': unknown metric '{metric}'; choose from {', '.join(LIMITS)}")
        if metric in limits:
            raise UsageError(f"fail_above='{text}': {metric} has the limit {limits[metric]:g} already; leave one out")
        try:
            limits[metric] = float(value)
        except ValueError:
            raise UsageError(f"fail_above='{text}': '{value}' is no number; write {metric}=0.1") from None
        if not 0 <= limits[metric] < math.inf:
            raise UsageError(f"fail_above='{text}': a limit is a finite number of at least 0")
    return limits


def exceeding(comparison: Comparison, limits: Mapping[str, float]) -> list[Excess]:
    """Find the limits that are exceeded.

    A matrix that has a metric before and not after (NaN, collapsed) exceeds every limit on it.

    Args:
        comparison: as `compare` returned it.
        limits: the largest allowed value of each metric, of those in `LIMITS`.

    Returns:
        The metrics that exceed them, in the order of the limits and of the matrices.

    Raises:
        UsageError: a metric has no value anywhere, so that nothing could ever fail.
    """
    return [excess for metric, limit in limits.items() for excess in _exceeding(comparison, metric, limit)]


def _exceeding(comparison: Comparison, metric: str, limit: float) -> Iterator[Excess]:
    if metric == UNMATCHED:
        alone = [u for side in (comparison.only_before, comparison.only_after) for u in side if u.role is not None]
        n = len(alone) + len(comparison.reshaped)
        if n > limit:
            names = [u.name for u in (*alone, *comparison.reshaped)]
            yield Excess(metric, listed(names), float(n), limit)
        return
    values = [(change, _value(change, metric)) for change in comparison.modules]
    if all(value is None for _, value in values) and not any(_is_lost(change, metric) for change, _ in values):
        raise UsageError(
            f"fail_above='{metric}={limit:g}': no matrix has {metric} on both sides, so nothing is checked"
        )
    for change, value in values:
        if value is None and _is_lost(change, metric):
            yield Excess(metric, change.name, None, limit)
        elif value is not None and not value <= limit:
            yield Excess(metric, change.name, value, limit)


def _value(change: ModuleChange, metric: str) -> float | None:
    if metric in METRICS:
        return abs(change.change[metric]) if metric in change.change else None
    if change.delta is None:
        return None
    if metric in _ANGLES:
        unmoved = change.unchanged is True
        return 0.0 if unmoved else None if change.delta.subspaces is None else getattr(change.delta.subspaces, metric)
    return getattr(change.delta, _OF_DELTA[metric])


def _is_lost(change: ModuleChange, metric: str) -> bool:
    """Tell whether a metric is gone after, or the matrix has no numbers any more."""
    if metric in METRICS:
        return getattr(change.before, metric) is not None and getattr(change.after, metric) is None
    return change.after.status in ("nonfinite", "failed") and change.before.status not in ("nonfinite", "failed")
