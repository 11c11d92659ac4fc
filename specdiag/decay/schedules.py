"""Weight decay as a function of the step: AdamC and ScionC, and the lr schedules that they follow.

A `Schedule` gives a number for a step; step 0 is before the first update.

The convention trap. Every decay here is the optimizer's argument, torch's `weight_decay`, which the optimizer itself
multiplies by the lr of the step: the weights lose the fraction lr x argument (`per_step`). AdamC's *argument* is
proportional to the lr, so its *per-step* decay is proportional to lr^2; where a paper writes "decay proportional to
lr^2" it means the second. An argument set to lr^2 would decay by lr^3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from specdiag.errors import UsageError
from specdiag.text.counts import percent

Schedule = Callable[[int], float]


def constant(value: float, warmup: int = 0) -> Schedule:
    """A constant after a warm-up in a straight line from 0.

    Args:
        value: after the warm-up.
        warmup: number of steps from 0 to `value`.
    """
    return lambda step: value * _warmup_factor(step, warmup)


def linear(peak: float, total: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """From 0 to `peak` in `warmup` steps, then in a straight line to `final` at step `total`, where it stays.

    Args:
        peak: value at the end of the warm-up.
        total: steps, warm-up included, until `final` is reached.
        warmup: number of steps from 0 to `peak`, in a straight line; fewer than `total`.
        final: value at step `total` and after it.

    Raises:
        UsageError: not 0 <= warmup < total.
    """
    return _decay_after_warmup(peak, total, warmup, final, lambda done: 1 - done)


def cosine(peak: float, total: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """From 0 to `peak` in `warmup` steps, then along half a cosine to `final` at step `total`, where it stays.

    Args:
        peak: value at the end of the warm-up.
        total: steps, warm-up included, until `final` is reached.
        warmup: number of steps from 0 to `peak`, in a straight line; fewer than `total`.
        final: value at step `total` and after it.

    Raises:
        UsageError: not 0 <= warmup < total.
    """
    return _decay_after_warmup(peak, total, warmup, final, lambda done: (1 + math.cos(math.pi * done)) / 2)


def per_step(lr: Schedule, decay: Schedule) -> Schedule:
    """lr x decay: the fraction of the weights that a step removes, the papers' independent decay eta.

    Args:
        lr: learning rate at each step.
        decay: the optimizer's `weight_decay` argument at each step.
    """
    return lambda step: lr(step) * decay(step)


def adamc(base: float, lr: Schedule, peak: float) -> Schedule:
    """AdamC (Defazio 2025, arXiv 2506.02285): the argument base x lr/peak, which keeps the weight norm where it is.

    For the layers that the paper calls normalised: every linear layer but the output layer, which keeps `base`, as
    does an embedding that is tied to it. Corrected runs want a larger `base` than uncorrected ones.

    Args:
        base: decay at the peak of the lr.
        lr: learning rate at each step, warm-up included: there the decay is small too.
        peak: the largest lr of the whole schedule, which may be larger than that of the first step. 0 gives no decay.

    Raises:
        UsageError: `base` or `peak` is negative; on call, an lr above `peak`.
    """
    if not (base >= 0 and peak >= 0):
        raise UsageError(f"base decay {base:g} and peak lr {peak:g} must not be negative")

    def decay(step: int) -> float:
        now = lr(step)
        if now > peak * (1 + 1e-9):
            raise UsageError(f"lr {now:g} at step {step} is above the peak {peak:g}: give the schedule's largest lr")
        return base * now / peak if peak else 0.0

    return decay


def scionc(target: Schedule, lr: Schedule, gradient_weight: Schedule) -> Schedule:
    """ScionC (Chou 2025, arXiv 2512.08217, algorithm 2): the argument (2 - alpha) lr/(2 alpha C^2) for a target norm.

    For all layers but the output layer, whose decay stays fixed. With constant alpha and C^2 it is AdamC's rule. The
    readable text of the paper says that decay goes as lr (2 - alpha)/alpha (equation 4); the factor 1/2 is
    reconstructed from the derivation and agrees with every C^2 that its tables print (`target_norm`).

    Args:
        target: C^2, the squared Frobenius norm of the weights over that of one unit step, so that one value serves
            all shapes. A falling C^2 cannot be followed once the lr is near 0.
        lr: the layer's learning rate at each step (Scion's lr times its radius).
        gradient_weight: alpha, the weight of the new gradient, in (0, 1]: 1 - momentum.

    Raises:
        UsageError: on call, C^2 not positive, alpha outside (0, 1], or a decay that would remove all weights.
    """

    def decay(step: int) -> float:
        wanted, now = target(step), lr(step)
        if not wanted > 0:
            raise UsageError(f"target norm C^2 is {wanted:g} at step {step}: it must be positive")
        argument = inflation(gradient_weight(step)) * now / (2 * wanted)
        if now * argument >= 1:
            raise UsageError(
                f"lr {now:g} and C^2 {wanted:g} would remove {percent(now * argument)} of the weights at step {step}: "
                "raise C^2 or lower the lr"
            )
        return argument

    return decay


def scionc_exact(base: float, lr: Schedule, peak: float) -> Schedule:
    """The argument that keeps the norm without the small-decay approximation, as the author's code has it (`exact`).

    (1 - sqrt(1 - lr^2/c))/lr with c = peak/(base (2 - peak base)), for alpha = 1 only. It differs from `adamc` by the
    order of lr x decay: 0.03 % at 1e-3.

    Args:
        base: decay at the peak of the lr; 0 gives no decay.
        lr: learning rate at each step.
        peak: the largest lr of the whole schedule.

    Raises:
        UsageError: on call, an lr above what any decay can balance (lr^2 > c).
    """
    removed = peak * base
    c = peak / (base * (2 - removed)) if base > 0 and removed < 2 else 0.0

    def decay(step: int) -> float:
        now = lr(step)
        if now <= 0 or c <= 0:
            return 0.0
        if now * now > c * (1 + 1e-9):
            raise UsageError(f"lr {now:g} at step {step} is above {math.sqrt(c):g}: no decay keeps the norm there")
        return (1 - math.sqrt(max(1 - now * now / c, 0.0))) / now

    return decay


def inflation(gradient_weight: float) -> float:
    """(2 - alpha)/alpha: how much the squared norm grows because momentum repeats each gradient (equations 3, 4).

    For updates whose l2 norm is normalised. Measured: about 0.7 of it for sign updates, 0.8 to 0.95 for spectral ones,
    a constant factor that matters only where alpha changes or the norm is predicted in absolute units.

    Args:
        gradient_weight: alpha, the weight of the new gradient, in (0, 1]: 1 - momentum.

    Returns:
        1 without momentum, more with it.

    Raises:
        UsageError: alpha outside (0, 1].
    """
    if not 0 < gradient_weight <= 1:
        raise UsageError(
            f"gradient_weight={gradient_weight:g}: the weight of the new gradient lies in (0, 1], 1 without momentum"
        )
    return (2 - gradient_weight) / gradient_weight


def effective_lr(lr: float, gradient_weight: float) -> float:
    """The lr that transfers between momenta: lr sqrt((2 - alpha)/alpha) (equation 3).

    Args:
        lr: learning rate.
        gradient_weight: alpha, the weight of the new gradient, in (0, 1].

    Raises:
        UsageError: alpha outside (0, 1].
    """
    return lr * math.sqrt(inflation(gradient_weight))


def target_norm(lr: float, weight_decay: float, gradient_weight: float = 1.0) -> float:
    """C^2 = lr (2 - alpha)/(2 alpha lambda): the squared norm at which decay and steps balance, in unit steps.

    Equation 4 as reconstructed, solved for the norm; `scionc` is its inverse. For AdamW take alpha = 1: lr/(2 lambda)
    for each coordinate, whatever its betas.

    Args:
        lr: learning rate, constant.
        weight_decay: lambda, the optimizer's argument, above 0.
        gradient_weight: alpha, the weight of the new gradient, in (0, 1].

    Raises:
        UsageError: alpha outside (0, 1].
    """
    return inflation(gradient_weight) * lr / (2 * weight_decay)


def target_norm_exact(lr: float, weight_decay: float, gradient_weight: float = 1.0) -> float:
    """`target_norm` with the terms of the order of eta = lr x lambda; reconstructed, and checked by simulation.

    lr^2 (1 + b)/((1 - b)(2 eta - eta^2)), b = (1 - eta)(1 - alpha).

    Args:
        lr: learning rate, constant.
        weight_decay: lambda, the optimizer's argument, above 0.
        gradient_weight: alpha, the weight of the new gradient, in (0, 1].

    Raises:
        UsageError: alpha outside (0, 1].
    """
    inflation(gradient_weight)
    eta = lr * weight_decay
    b = (1 - eta) * (1 - gradient_weight)
    return lr * lr * (1 + b) / ((1 - b) * (2 * eta - eta * eta))


def gradient_weight_for(share: float, initial: float) -> tuple[float, float]:
    """Lower the effective lr by a larger alpha, in place of a smaller lr (appendix C, reconstructed).

    Args:
        share: wanted effective lr over the initial one, in (0, 1].
        initial: alpha at share 1.

    Returns:
        alpha = 2/(1 + share^2 (2 - initial)/initial), and the factor on the initial lr: 1 while alpha can go up
        (share >= sqrt(initial/(2 - initial))); below that alpha is 1 and the lr falls.

    Raises:
        UsageError: `share` or `initial` outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UsageError(f"share of the effective lr is {share:g}: it lies in (0, 1]")
    squared = share * share * inflation(initial)
    return (2 / (1 + squared), 1.0) if squared >= 1 else (1.0, math.sqrt(squared))


def _warmup_factor(step: int, warmup: int) -> float:
    return min(step / warmup, 1.0) if warmup > 0 else 1.0


def _decay_after_warmup(
    peak: float, total: int, warmup: int, final: float, shape: Callable[[float], float]
) -> Schedule:
    if not 0 <= warmup < total:
        raise UsageError(f"{warmup} steps of warm-up do not fit in a schedule of {total} steps")

    def value(step: int) -> float:
        if step < warmup:
            return peak * _warmup_factor(step, warmup)
        return final + (peak - final) * shape(min((step - warmup) / (total - warmup), 1.0))

    return value
