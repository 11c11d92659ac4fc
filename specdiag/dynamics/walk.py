"""The squared norm step by step, in expectation, under any lr and decay schedule.

    S_t = (1 - eta_t)^2 S_{t-1} + lr_t^2 C + 2 lr_t (1 - eta_t) X_t,   X_t = -E theta_{t-1} u_t

is equation 1 of arXiv 2512.08217 in a coordinate. Momentum makes X_t: a sum over earlier steps of lr C rho_k, updated
for each geometric term of rho_k. So a moving lr and the first steps are right too, except for the start of the
optimizer's own state (Adam's bias correction, empty buffers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from specdiag.decay.schedules import Schedule
from specdiag.dynamics.steady import correlations, removed
from specdiag.dynamics.updates import Update

Stepper = Callable[[float, float], float]
"""(lr, decay) -> mean square of a weight after one more step."""


def expected(
    update: Update, lr: Schedule, decay: Schedule, steps: int, start: float, at: Iterable[int]
) -> dict[int, float]:
    """Compute the expected mean square of a weight over a run.

    Args:
        update: of an optimizer.
        lr: learning rate at each step, from step 1 on.
        decay: the optimizer's argument at each step, from step 1 on.
        steps: number of steps.
        start: mean square of a weight before the first step.
        at: steps to note; 0 is the start.

    Returns:
        Mean square of a weight after each noted step, by step.

    Raises:
        UsageError: a step would remove all weights.
    """
    wanted = set(at)
    squares = {0: start} if 0 in wanted else {}
    take = _coupled(update, start) if update.coupled else _decoupled(update, start)
    for step in range(1, steps + 1):
        square = take(lr(step), decay(step))
        if step in wanted:
            squares[step] = square
    return squares


def _decoupled(update: Update, square: float) -> Stepper:
    c, own = update.square, 0.0 if update.renormalized else 1.0
    parts = correlations(update)
    along = [0.0] * len(parts)

    def take(lr: float, decay: float) -> float:
        nonlocal square, along
        left = 1 - removed(update, lr, decay)
        square = left * left * square + lr * lr * c * own + 2 * lr * left * sum(along)
        along = [ratio * (left * x + weight * lr * c) for x, (weight, ratio) in zip(along, parts, strict=True)]
        return square

    return take


def _coupled(update: Update, square: float) -> Stepper:
    """SGD with coupled decay: second moments of weights and buffer, exact from an empty buffer on."""
    mu = update.kept[0]
    fresh = update.square * (1 - mu * mu)
    mixed = buffer = 0.0

    def take(lr: float, decay: float) -> float:
        nonlocal square, mixed, buffer
        removed(update, lr, decay)
        buffer = mu * mu * buffer + fresh + decay * decay * square + 2 * mu * decay * mixed
        pulled = mu * mixed + decay * square
        square, mixed = square - 2 * lr * pulled + lr * lr * buffer, pulled - lr * buffer
        return square

    return take
