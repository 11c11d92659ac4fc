"""The squared norm step by step, in expectation, under any lr and decay schedule.

    S_t = (1 - eta_t)^2 S_{t-1} + lr_t^2 C R(eta_t)

with R as in `steady`. It takes momentum to be in balance with the present lr: right where schedules move slowly against
the momentum's memory, off by some tens of steps at the start.
"""

from __future__ import annotations

from collections.abc import Iterable

from specdiag.decay.schedules import Schedule
from specdiag.dynamics.steady import added, removed
from specdiag.dynamics.updates import Update


def expected(
    update: Update, lr: Schedule, decay: Schedule, steps: int, start: float, at: Iterable[int]
) -> dict[int, float]:
    """Mean square of a weight after each of the steps `at`; step t uses lr(t) and decay(t), and 0 is the start.

    Args:
        update: of an optimizer.
        lr: learning rate at each step.
        decay: the optimizer's argument at each step.
        steps: how many are taken.
        start: mean square of a weight before the first.
        at: steps to note.

    Raises:
        UsageError: a step would remove all weights.
    """
    wanted = set(at)
    found = {0: start} if 0 in wanted else {}
    square, before = start, None
    kept = gained = 0.0
    for step in range(1, steps + 1):
        now = lr(step), decay(step)
        if now != before:
            kept, gained, before = (1 - removed(update, *now)) ** 2, added(update, *now), now
        square = kept * square + gained
        if step in wanted:
            found[step] = square
    return found
