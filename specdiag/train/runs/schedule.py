"""The lr schedules of a run so far. A run that is extended gets a longer schedule, which changes its lr at once."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.records import Record


class ScheduleSpan(Record, frozen=True, kw_only=True):
    """A part of a run under one schedule."""

    step: int
    """Optimizer steps done when it begins."""
    steps_total: int
    """Steps that the schedule spans, counted from the beginning of the run."""


def extend_schedule(spans: Sequence[ScheduleSpan], step: int, steps_total: int) -> tuple[ScheduleSpan, ...]:
    """Return the schedules of a run that continues.

    Args:
        spans: schedules so far; those that began after `step` are dropped, as in a branch from an older checkpoint.
        step: optimizer steps done.
        steps_total: steps that the schedule spans from now on.

    Returns:
        Spans by their first step.
    """
    earlier = tuple(span for span in spans if span.step < step)
    return (
        earlier
        if earlier and earlier[-1].steps_total == steps_total
        else (*earlier, ScheduleSpan(step=step, steps_total=steps_total))
    )


def total_at(spans: Sequence[ScheduleSpan], step: int) -> int | None:
    """Return the number of steps that the schedule spanned at a step; None if it is unknown.

    Args:
        spans: schedules of the run.
        step: optimizer steps done.
    """
    earlier = [span.steps_total for span in spans if span.step < max(step, 1)]
    return earlier[-1] if earlier else None


def describe_schedule(spans: Sequence[ScheduleSpan]) -> str:
    """Describe the spans in a few words, such as `60 steps, from step 60 on 70`."""
    first, *rest = spans
    return ", ".join([f"{first.steps_total} steps", *(f"from step {s.step} on {s.steps_total}" for s in rest)])
