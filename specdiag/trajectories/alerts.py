"""Alerts of a run: NaN, an effective rank that collapsed, a norm that changes faster than before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal

from specdiag.records import Record
from specdiag.trajectories.records import Trajectory

COLLAPSE = 0.5
"""Fraction of the previous checkpoint's effective rank below which a matrix has collapsed."""

FASTER = 3.0
"""A norm that changes this many times faster than ever before, and by more than `LEAST`, raises an alert."""

LEAST = 0.05
"""Smallest relative change of a norm that raises an alert."""


class Alert(Record, frozen=True, kw_only=True):
    """A problem at one step of a run."""

    step: int
    kind: Literal["nonfinite", "collapse", "norm", "scores", "rank", "channel", "update", "dead", "spike"]
    module: str
    """Key of the matrix; empty for the loss."""
    value: float | None
    """Number of values that are not finite, effective rank, norm, or what a norm watch logged; None without one."""
    message: str


def alerts(trajectory: Trajectory, step: int) -> list[Alert]:
    """List what is wrong at a step, compared with the steps before it.

    Args:
        trajectory: the run so far.
        step: one of its steps.

    Returns:
        Alerts for the loss, for NaN, for effective ranks and for norms, in this order.
    """
    before = [s.step for s in trajectory.steps if s.step < step]
    metrics = ("effective_rank", "frobenius_norm", "n_nonfinite")
    courses: dict[str, dict[str, list[tuple[int, float]]]] = {metric: {} for metric in metrics}
    for row in trajectory.rows:
        if row.metric in courses and row.step <= step and row.value is not None:
            courses[row.metric].setdefault(row.module, []).append((row.step, row.value))
    return [
        *_nonfinite_loss(trajectory, step),
        *_nonfinite_values(courses["n_nonfinite"], step),
        *_collapsed_ranks(courses["effective_rank"], courses["n_nonfinite"], step, before),
        *_fast_norms(courses["frobenius_norm"], step),
    ]


Courses = Mapping[str, Sequence[tuple[int, float]]]
"""Values by module, as (step, value) in the order of steps."""


def _nonfinite_loss(trajectory: Trajectory, step: int) -> Iterator[Alert]:
    for result in trajectory.steps:
        if result.step == step and result.loss is None and result.loss_step is not None:
            message = f"the training loss logged at step {result.loss_step} is not finite"
            yield Alert(step=step, kind="nonfinite", module="", value=None, message=message)


def _nonfinite_values(counts: Courses, step: int) -> Iterator[Alert]:
    for module, course in counts.items():
        if course[-1][0] == step:
            n = course[-1][1]
            message = f"{n:.0f} values of {module} are NaN or infinite"
            yield Alert(step=step, kind="nonfinite", module=module, value=n, message=message)


def _collapsed_ranks(ranks: Courses, nonfinite: Courses, step: int, before: Sequence[int]) -> Iterator[Alert]:
    for module, course in ranks.items():
        if course[-1][0] != step:  # no spectrum: NaN has its own alert, else all values are zero
            if before and course[-1][0] == before[-1] and module not in nonfinite:
                message = f"{module} had effective rank {course[-1][1]:.1f} and has no spectrum now: is it zero?"
                yield Alert(step=step, kind="collapse", module=module, value=None, message=message)
        elif len(course) > 1 and course[-1][1] < COLLAPSE * course[-2][1]:
            (then, old), (_, now) = course[-2:]
            message = f"the effective rank of {module} fell from {old:.1f} at step {then} to {now:.1f}"
            yield Alert(step=step, kind="collapse", module=module, value=now, message=message)


def _fast_norms(norms: Courses, step: int) -> Iterator[Alert]:
    """Yield the norms that change faster per step than `FASTER` times their fastest; it takes four checkpoints."""
    for module, course in norms.items():
        if course[-1][0] != step or len(course) < 4 or min(value for _, value in course) <= 0:
            continue
        moves = [math.log(b / a) for (_, a), (_, b) in pairwise(course)]
        rates = [abs(move) / (t - s) for move, ((s, _), (t, _)) in zip(moves, pairwise(course), strict=True)]
        fastest = max(rates[:-1])
        if abs(moves[-1]) > LEAST and rates[-1] > FASTER * fastest:
            (then, old), (_, now) = course[-2:]
            times = f"{rates[-1] / fastest:.0f} times as fast as ever before" if fastest else "and never moved before"
            message = f"||W||_F of {module} went from {old:.4g} at step {then} to {now:.4g}, {times}"
            yield Alert(step=step, kind="norm", module=module, value=now, message=message)
