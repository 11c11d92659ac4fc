"""The weights at the end of a run of AdamW, from the recursion of `walk`, for runs of any number of steps.

To first order in lr x decay three things decide a run: u = lr x decay x steps, schedule and start. Fewer and larger
steps of the same u and the same balance sqrt(lr/(2 decay)) end at the same norm. From balance, along a cosine to zero,
the square ends at 2u int_0^1 g(s)^2 exp(-2u int_s^1 g) ds + exp(-u) of the balance, g(s) = (1 + cos pi s)/2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from specdiag.decay import schedules
from specdiag.decay.schedule_record import LrShape
from specdiag.dynamics.updates import update_of
from specdiag.dynamics.walk import expected
from specdiag.errors import UsageError

MOST_TIMESCALES = 2000
"""Largest u of a run that is followed: no run that is known comes near it."""
_FEWEST_STEPS = 2000
"""A longer run takes at least so many steps here: norms are then right to 0.1 %."""
_LARGEST_RATE = 0.005
"""Largest share of the weights that such a step removes. It errs by half of that in the square of a balance."""


class RunEnd(NamedTuple):
    """The mean square of a weight after a run is `grown + left x` that before it.

    Attributes:
        grown: the mean square that the steps leave of themselves.
        left: the share that is left of the start.
    """

    grown: float
    left: float

    def rms(self, start: float) -> float:
        """Compute the root mean square of a weight.

        Args:
            start: its root mean square before the first step.
        """
        return math.sqrt(self.grown + self.left * start * start)


def run_end(
    *, lr: float, weight_decay: float, steps: int, lr_shape: LrShape, warmup: int = 0, final_lr: float = 0.0
) -> RunEnd:
    """Predict what steps of AdamW with decoupled decay make of weights whose gradients are noise.

    The product C R of AdamW is 1 whatever its betas, to first order: steps are taken as those of a random walk.

    Args:
        lr: peak learning rate, above 0.
        weight_decay: the optimizer's argument, above 0.
        steps: of the run.
        lr_shape: course of the lr after the warm-up.
        warmup: steps from lr 0 to the peak, fewer than `steps`.
        final_lr: last lr of `linear` and `cosine`.

    Returns:
        The two numbers of an affine function of the start.

    Raises:
        UsageError: a step would remove all weights, the warm-up is longer than the run, or u is above 2000.
    """
    times = lr * weight_decay * steps
    if times > MOST_TIMESCALES:
        raise UsageError(
            f"lr {lr:g} x weight decay {weight_decay:g} x {steps} steps is {times:.3g}, above {MOST_TIMESCALES}: "
            "give optimizer steps, not tokens or samples"
        )
    n = min(steps, max(_FEWEST_STEPS, math.ceil(times / _LARGEST_RATE)))
    stretch = math.sqrt(steps / n)
    peak, decay, last = lr * stretch, weight_decay * stretch, final_lr * stretch
    early = min(round(warmup * n / steps), n - 1) if warmup < steps else n
    if lr_shape == "constant":
        rate = schedules.constant(peak, early)
    else:
        rate = (schedules.linear if lr_shape == "linear" else schedules.cosine)(peak, n, early, last)
    grown = expected(update_of("random-walk", (1,)), rate, schedules.constant(decay), n, 0.0, [n])[n]
    return RunEnd(grown, math.prod((1 - rate(step) * decay) ** 2 for step in range(1, n + 1)))
