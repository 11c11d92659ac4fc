"""Record of the schedule that a plan's decay follows over a run, by AdamC or ScionC."""

from __future__ import annotations

from typing import Literal, cast, get_args

from msgspec.structs import asdict

from specdiag.decay import schedules
from specdiag.errors import UsageError
from specdiag.records import Record
from specdiag.text import checks

LrShape = Literal["constant", "linear", "cosine"]

TRAP = (
    "Convention: what is scheduled is the optimizer's weight_decay argument, which the optimizer multiplies by the lr. "
    "An argument proportional to the lr is a per-step decay proportional to lr^2; setting the argument to lr^2 would "
    "decay by lr^3."
)


class DecaySchedule(Record, frozen=True, kw_only=True):
    """A decay that follows the lr, for every layer but the output layer, which keeps its decay fixed."""

    method: Literal["adamc", "scionc"]
    lr_shape: LrShape
    peak_lr: float
    steps_total: int
    warmup: int = 0
    momentum: float = 0.0
    """Share of the averaged gradient that a step of ScionC keeps; its alpha is 1 - momentum."""
    target_norm: float | None = None
    """C^2 of ScionC; None for the C^2 at which the base decay balances the peak lr."""

    def lr(self, step: int) -> float:
        """Return the learning rate at a step.

        Args:
            step: optimizer steps done.
        """
        return self._lr()(step)

    def weight_decay(self, step: int, base: float) -> float:
        """Return the optimizer's `weight_decay` argument of a module at a step.

        Args:
            step: optimizer steps done.
            base: decay of the module at the peak of the lr. ScionC with a target norm does not depend on it, unless it
                is 0: then the decay stays 0.
        """
        return base * self.factor(step, base)

    def factor(self, step: int, base: float) -> float:
        """Return the decay at a step over `base`.

        Args:
            step: optimizer steps done.
            base: decay of the module at the peak of the lr; 0 gives factor 1.
        """
        if base == 0:
            return 1.0
        lr = self._lr()
        if self.method == "adamc":
            return schedules.adamc(base, lr, self.peak_lr)(step) / base
        alpha = 1 - self.momentum
        target = self.target_norm or schedules.target_norm(self.peak_lr, base, alpha)
        return schedules.scionc(lambda _: target, lr, lambda _: alpha)(step) / base

    def milestones(self) -> list[int]:
        """Return steps that show the course: the end of the warm-up, quarters of the run, and the last step."""
        quarters = [round(self.steps_total * share) for share in (0.25, 0.5, 0.75)]
        return sorted({self.warmup, *(q for q in quarters if q > self.warmup), self.steps_total - 1})

    def _lr(self) -> schedules.Schedule:
        if self.lr_shape == "constant":
            return schedules.constant(self.peak_lr, self.warmup)
        shape = schedules.linear if self.lr_shape == "linear" else schedules.cosine
        return shape(self.peak_lr, self.steps_total, self.warmup)


def decay_schedule(
    method: str,
    *,
    peak_lr: float | None,
    steps_total: int | None,
    lr_shape: LrShape = "cosine",
    warmup: int = 0,
    momentum: float = 0.0,
    target_norm: float | None = None,
) -> DecaySchedule:
    """Make a schedule after a check of its numbers.

    Args:
        method: `adamc` or `scionc`.
        peak_lr: largest learning rate of the run.
        steps_total: optimizer steps of the whole run, warm-up included.
        lr_shape: course of the lr after the warm-up: `constant`, or `linear` or `cosine` to 0.
        warmup: steps from lr 0 to the peak, in a straight line; fewer than `steps_total`.
        momentum: of ScionC only, in [0, 1); alpha is 1 - momentum.
        target_norm: C^2 of ScionC only; None for the C^2 at which the base decay balances the peak lr.

    Raises:
        UsageError: a number is missing or out of range, or belongs to the other method.
    """
    if method not in ("adamc", "scionc"):
        raise UsageError(f"unknown schedule {checks.shown(method)}; choose adamc or scionc")
    if peak_lr is None or steps_total is None:
        raise UsageError(f"schedule {method} follows the lr: give its peak with peak_lr=, and steps_total=")
    checks.one_of("lr_shape", lr_shape, get_args(LrShape))
    peak_lr = checks.rate("lr", peak_lr, above=0, hint="the peak of the schedule")
    steps_total = checks.whole("steps_total", steps_total, least=1)
    warmup = checks.whole("warmup", warmup, least=0)
    momentum = checks.number("momentum", momentum, least=0, below=1)
    if warmup >= steps_total:
        raise UsageError(f"peak_lr={peak_lr:g}, steps_total={steps_total} and warmup={warmup} make no schedule")
    if method == "adamc" and (momentum != 0.0 or target_norm is not None):
        raise UsageError("momentum= and target_norm= belong to schedule scionc")
    if target_norm is not None:
        target_norm = checks.number(
            "target_norm", target_norm, above=0, hint="a squared norm, C^2; it must be positive"
        )
    return DecaySchedule(
        method=method,  # pyright: ignore[reportArgumentType] - checked above
        lr_shape=lr_shape,
        peak_lr=peak_lr,
        steps_total=steps_total,
        warmup=warmup,
        momentum=momentum,
        target_norm=target_norm,
    )


def checked_schedule(schedule: object) -> DecaySchedule:
    """Check a schedule that may have been made without `decay_schedule`.

    Args:
        schedule: an argument of a user.

    Raises:
        UsageError: it is no `DecaySchedule`, or its numbers make no sense.
    """
    checks.instance("schedule", schedule, DecaySchedule, "such as decay_schedule makes")
    return decay_schedule(**asdict(cast("DecaySchedule", schedule)))
