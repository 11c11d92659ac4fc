"""`simulate`: from the settings of a run to the norms that they lead to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from specdiag.decay import schedules
from specdiag.decay.schedule_record import LrShape
from specdiag.dynamics import steady
from specdiag.dynamics.assumptions import assumptions
from specdiag.dynamics.records import Balance, Point, Setting, Simulation
from specdiag.dynamics.updates import BETAS, MOMENTUM, Shape, Update, update_of
from specdiag.dynamics.walk import expected
from specdiag.errors import UsageError
from specdiag.text import checks

INITIAL_RMS = 0.02
"""Default of the initial RMS, as in GPT-2."""
MOST_STEPS = 10_000_000
_LARGEST = 1e15
"""Largest value of any other number: more would overflow."""
_POINTS = 200
_SAMPLE = 4096
"""Number of coordinates that stand for the whole tensor of an elementwise optimizer."""
_SIDES = {"scion-spectral": 32, "muon": 64}
"""Smaller side of the matrix that stands for a larger one. Newton-Schulz steps depend on the size, U V^T hardly."""


def simulate(
    optimizer: str = "adamw",
    *,
    lr: float,
    weight_decay: float,
    steps: int,
    lr_shape: LrShape = "constant",
    warmup: int = 0,
    final_lr: float = 0.0,
    corrected: bool = False,
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
    shape: Shape = (1024, 1024),
    initial_rms: float | None = None,
    initial_norm: float | None = None,
    gradient_rms: float = 1.0,
    batch_tokens: float | None = None,
    stochastic: bool = False,
    seed: int = 0,
    at: Sequence[int] | None = None,
) -> Simulation:
    """Predict the norm of a weight tensor over a run whose gradients are noise, and the balance that it tends to.

    Args:
        optimizer: one of `dynamics.updates.OPTIMIZERS`; `adamc` is `adamw` with `corrected`.
        lr: peak learning rate; for Scion that of the layer, lr x radius.
        weight_decay: the optimizer's argument at the peak; for Scion that of the layer, 1/radius.
        steps: of the run.
        lr_shape: `constant`, or `linear` or `cosine` to `final_lr`.
        warmup: steps from lr 0 to the peak in a straight line.
        final_lr: last lr of `linear` and `cosine`.
        corrected: True lets the decay follow the lr (AdamC, ScionC).
        momentum: share of the buffer that a step keeps, in [0, 1); Scion's alpha is 1 - momentum.
        betas: of adamw, adamc and lion.
        shape: (d_out, d_in) or (d,).
        initial_rms: root mean square of the weights before the first step; 0.02 where this and `initial_norm` are None.
        initial_norm: Frobenius norm of the weights before the first step, in place of `initial_rms`.
        gradient_rms: root mean square of a gradient's coordinates; only SGD's norm depends on it.
        batch_tokens: tokens of a step, to give times in tokens too.
        stochastic: also run the optimizer itself on noise, for a part of the tensor.
        seed: of the noise.
        at: steps to note; None for up to 201 evenly spaced ones.

    Raises:
        UsageError: an argument is out of range; the message names it, its value, and what is allowed.
    """
    corrected, stochastic = checks.flag("corrected", corrected), checks.flag("stochastic", stochastic)
    corrected = corrected or optimizer == "adamc"
    shape = checks.wholes("shape", shape)
    seed, warmup = checks.whole("seed", seed, least=0), checks.whole("warmup", warmup, least=0)
    initial_rms, initial_norm, momentum, batch_tokens = (
        None if value is None else checks.number(name, value, most=_LARGEST)
        for name, value in (
            ("initial_rms", initial_rms),
            ("initial_norm", initial_norm),
            ("momentum", momentum),
            ("batch_tokens", batch_tokens),
        )
    )
    betas = None if betas is None else checks.pair("betas", betas)
    gradient_rms = checks.number("gradient_rms", gradient_rms, most=_LARGEST)
    start = _initial_rms(shape, initial_rms, initial_norm)
    lr, weight_decay, final_lr = (
        checks.rate(name, value, least=None)
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("final_lr", final_lr))
    )
    steps = checks.whole("steps", steps)
    _check(lr, weight_decay, steps, lr_shape, final_lr, batch_tokens)
    update = update_of(optimizer, shape, momentum=momentum, betas=betas, gradient_rms=gradient_rms)
    momentum = MOMENTUM.get(update.optimizer) if momentum is None else momentum
    betas = BETAS.get(update.optimizer) if betas is None else betas
    setting = Setting(
        optimizer=update.optimizer, lr=lr, weight_decay=weight_decay, steps=steps, lr_shape=lr_shape, warmup=warmup,
        final_lr=final_lr, corrected=corrected, momentum=momentum, betas=betas, shape=tuple(shape), initial_rms=start,
        gradient_rms=gradient_rms, batch_tokens=batch_tokens,
    )  # fmt: skip
    noted = _steps_to_note(steps, at)
    lr_at = _lr(setting)
    decay_at = schedules.adamc(weight_decay, lr_at, lr) if corrected else schedules.constant(weight_decay)
    squares = expected(update, lr_at, decay_at, steps, start * start, noted)
    simulated_rms, sample = dict[int, float](), None
    if stochastic:
        from specdiag.dynamics.noise import run_on_noise

        sample = _sample(update, setting.shape)
        # A smaller matrix makes steps of another size. Its weights are scaled in proportion to them.
        sample_update = update_of(optimizer, sample, momentum=momentum, betas=betas, gradient_rms=gradient_rms)
        scale = math.sqrt(sample_update.square / update.square)
        walk = run_on_noise(
            update, sample, lr_at, decay_at, steps, (start * scale) ** 2, noted, gradient_rms=gradient_rms, seed=seed
        )  # fmt: skip
        simulated_rms = {step: math.sqrt(square) / scale for step, square in walk.squares.items()}
    d = math.prod(shape)
    course = tuple(
        Point(
            step=step,
            lr=lr_at(step),
            weight_decay=decay_at(step),
            rms=math.sqrt(square),
            frobenius_norm=math.sqrt(square * d),
            steady_rms=steady.steady_norm(update, lr_at(step), decay_at(step)),
            simulated_rms=simulated_rms.get(step),
        )
        for step, square in squares.items()
    )
    return Simulation(
        setting=setting,
        balance=_balance(update, setting),
        course=course,
        simulated_shape=sample,
        seed=seed if stochastic else None,
        assumptions=assumptions(update, setting, sample),
    )


def _balance(update: Update, setting: Setting) -> Balance:
    lr, decay, d = setting.lr, setting.weight_decay, math.prod(setting.shape)
    eta = steady.removed(update, lr, decay)
    square = steady.steady_square(update, lr, decay)
    tokens = setting.batch_tokens
    return Balance(
        rms=None if square is None else math.sqrt(square),
        frobenius_norm=None if square is None else math.sqrt(square * d),
        effective_decay=eta,
        inflation=steady.inflation(update, eta),
        inflation_limit=steady.inflation(update),
        update_rms=math.sqrt(update.square),
        tuc=steady.tuc(update, lr, d),
        rotation=steady.rotation(update, lr, decay),
        rotation_kosson=steady.kosson_rotation(update, lr, decay),
        rotation_tuc=steady.tuc_rotation(update, lr, decay),
        norm_time=1 / (2 * eta) if eta else None,
        timescale=1 / eta if eta else None,
        timescale_tokens=tokens / eta if eta and tokens is not None else None,
        steps_to_steady=steady.steps_to_steady(setting.initial_rms**2, square, eta) if square else None,
    )


def _lr(setting: Setting) -> schedules.Schedule:
    if setting.lr_shape == "constant":
        return schedules.constant(setting.lr, setting.warmup)
    shape = schedules.linear if setting.lr_shape == "linear" else schedules.cosine
    return shape(setting.lr, setting.steps, setting.warmup, setting.final_lr)


def _steps_to_note(steps: int, at: Sequence[int] | None) -> list[int]:
    if at is None:
        return sorted({round(i * steps / _POINTS) for i in range(_POINTS + 1)})
    at = checks.wholes("at", at)
    outside = [step for step in at if not 0 <= step <= steps]
    if outside:
        raise UsageError(f"step {outside[0]} lies outside a run of {steps} steps")
    return sorted(set(at))


def _sample(update: Update, shape: Shape) -> Shape:
    if update.optimizer in _SIDES:
        shrink = max(1.0, min(shape) / _SIDES[update.optimizer])
        return tuple(max(1, round(side / shrink)) for side in shape)
    if update.optimizer == "scion-sign":
        return min(shape[0], max(1, _SAMPLE // shape[1])), shape[1]
    return (min(math.prod(shape), _SAMPLE),)


def _initial_rms(shape: Shape, rms: float | None, norm: float | None) -> float:
    if rms is not None and norm is not None:
        raise UsageError(f"initial_rms={rms:g} and initial_norm={norm:g} say the same twice: leave one out")
    name, value = ("initial_norm", norm) if norm is not None else ("initial_rms", rms)
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name}={value:g}: give a norm that is not negative")
    if norm is not None:
        return norm / math.sqrt(math.prod(shape) or 1)
    return INITIAL_RMS if rms is None else rms


def _check(
    lr: float, weight_decay: float, steps: int, lr_shape: str, final_lr: float, batch_tokens: float | None
) -> None:
    checks.one_of("lr_shape", lr_shape, get_args(LrShape))
    if not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"lr={lr:g}: give the peak learning rate, a positive number")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise UsageError(f"weight_decay={weight_decay:g}: give a number that is not negative")
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"steps={steps}: give 1 to {MOST_STEPS:,}")
    if final_lr and lr_shape == "constant":
        raise UsageError(f"final_lr={final_lr:g} belongs to lr_shape=linear and lr_shape=cosine")
    if not 0 <= final_lr <= lr:
        raise UsageError(f"final_lr={final_lr:g} must lie between 0 and lr={lr:g}")
    if batch_tokens is not None and not (math.isfinite(batch_tokens) and batch_tokens > 0):
        raise UsageError(f"batch_tokens={batch_tokens:g}: give the tokens of one step, a positive number")
