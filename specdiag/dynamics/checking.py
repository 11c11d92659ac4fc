"""Comparison of predicted norms with those that a run logged."""

from __future__ import annotations

from collections.abc import Iterable

from specdiag.records import Record
from specdiag.trajectories.metric_log import LogEntry, latest


class NormError(Record, frozen=True, kw_only=True):
    """A predicted number and the logged one."""

    step: int
    module: str
    metric: str
    predicted: float
    logged: float
    relative: float
    """predicted/logged - 1."""


def compare_norms(predicted: Iterable[LogEntry], logged: Iterable[LogEntry]) -> tuple[NormError, ...]:
    """Compare the entries that both sides have, by step, module and metric.

    Args:
        predicted: of `Simulation.log_entries`, made for the logged steps (`simulate(at=...)`).
        logged: of a run's log.

    Returns:
        One error for each common entry, by step. Logged zeros and NaN are left out.
    """
    known = {(e.step, e.module, e.metric): e.value for e in latest(predicted)}
    deviations: list[NormError] = []
    for e in latest(logged):
        value = known.get((e.step, e.module, e.metric))
        if value is not None and e.value:
            deviations.append(
                NormError(
                    step=e.step, module=e.module, metric=e.metric, predicted=value, logged=e.value,
                    relative=value / e.value - 1,
                )
            )  # fmt: skip
    return tuple(deviations)
