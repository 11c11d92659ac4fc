"""A run of AdamW as its owner states it, and the sizes of weights that it can end with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, get_args

from specdiag.decay.schedule_record import LrShape
from specdiag.dynamics.run_end import RunEnd, run_end
from specdiag.errors import UsageError
from specdiag.text import checks

FEWEST_TIMES, MOST_TIMES = 1.0, 100.0
"""lr x decay x steps of runs whose length is not stated. A choice: Llama 2 7B had 15, nanoGPT's GPT-2 36, torchvision's
ViT-B/16 84."""
FINAL_SHARE = 0.1
"""Largest final lr of a falling schedule whose end is not stated, over its peak. A choice: schedules of language models
end at 0 or a tenth."""

_USUAL: tuple[LrShape, ...] = ("constant", "cosine")
"""Shapes that make the expected range where none is stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedRun:
    """Settings of a run of AdamW; None where they are not known.

    Attributes:
        weight_decay: decoupled decay.
        lr: peak learning rate.
        steps: optimizer steps.
        lr_shape: course of the lr after the warm-up.
        warmup: steps from lr 0 to the peak.
        final_lr: last lr of a falling schedule.
        initial_rms: root mean square of the weights before the first step.
    """

    weight_decay: float
    lr: float
    steps: int | None = None
    lr_shape: LrShape | None = None
    warmup: int = 0
    final_lr: float | None = None
    initial_rms: float | None = None

    @property
    def rate(self) -> float:
        """The share of the weights that a step at the peak removes."""
        return self.lr * self.weight_decay

    @property
    def balance(self) -> float:
        """Root mean square of a weight in balance at the peak."""
        return math.sqrt(self.lr / (2 * self.weight_decay))


class Band(NamedTuple):
    """Root mean squares that a stated run explains.

    Attributes:
        low: the least. A start that is not stated is balance at the peak; a schedule that is not, constant or a cosine
            to zero.
        high: the largest, likewise.
        possible_low: the least from any start, of straight lines too, and of schedules that end at a tenth of the peak.
        possible_high: the largest, likewise.
        left: the largest share of the start's mean square that is left.
    """

    low: float
    high: float
    possible_low: float
    possible_high: float
    left: float


def stated_run(
    *,
    weight_decay: float | None,
    lr: float | None,
    steps: int | None,
    lr_shape: LrShape | None,
    warmup: int,
    final_lr: float | None,
    initial_rms: float | None,
) -> StatedRun | None:
    """Check the settings of a run.

    Args:
        weight_decay: AdamW's decoupled decay.
        lr: peak learning rate.
        steps: optimizer steps.
        lr_shape: course of the lr after the warm-up.
        warmup: steps from lr 0 to the peak.
        final_lr: last lr of a falling schedule.
        initial_rms: root mean square of the weights before the first step.

    Returns:
        The run; None where nothing of it is stated.

    Raises:
        UsageError: a number is out of range, or one does not go with the others.
    """
    warmup = checks.whole("warmup", warmup, least=0)
    details = {"steps": steps, "lr_shape": lr_shape, "warmup": warmup or None, "final_lr": final_lr,
               "initial_rms": initial_rms}  # fmt: skip
    given = [name for name, value in details.items() if value is not None]
    if weight_decay is None and lr is None and not given:
        return None
    if weight_decay is None or lr is None:
        raise UsageError(
            "the decay check needs weight_decay= and lr= of the run, both"
            + (f"; {', '.join(f'{name}=' for name in given)} goes with them" if given else "")
        )
    run = StatedRun(
        weight_decay=checks.rate("weight_decay", weight_decay, above=0, hint="of the run"),
        lr=checks.rate("lr", lr, above=0, hint="of the run"),
        steps=None if steps is None else checks.whole("steps", steps, least=1, hint="the optimizer steps of the run"),
        lr_shape=lr_shape,
        warmup=warmup,
        final_lr=None if final_lr is None else checks.rate("final_lr", final_lr),
        initial_rms=None if initial_rms is None else checks.number("initial_rms", initial_rms, least=0),
    )
    _check(run)
    return run


def band(run: StatedRun, largest_start: float) -> Band:
    """Compute the sizes that a run explains, over everything that is not stated of it.

    Args:
        run: the stated settings.
        largest_start: largest root mean square that an initialisation of such weights has.

    Raises:
        UsageError: see `run_end`.
    """
    usual, starts = (run.balance, (0.0, largest_start)) if run.initial_rms is None else (run.initial_rms, ())
    finals = (0.0, FINAL_SHARE * run.lr) if run.final_lr is None else (run.final_lr,)
    expected = _ends(run, _USUAL, finals[0])
    others = [end for final in finals for end in _ends(run, get_args(LrShape), final)]
    sizes = [end.rms(usual) for end in expected]
    possible = [end.rms(start) for end in (*expected, *others) for start in (usual, *starts)]
    return Band(min(sizes), max(sizes), min(possible), max(possible), max(end.left for end in expected))


def _ends(run: StatedRun, shapes: tuple[LrShape, ...], final_lr: float) -> list[RunEnd]:
    """Predict the runs of the stated length and shape, or of plausible lengths and each of these shapes."""
    return [
        run_end(
            lr=run.lr,
            weight_decay=run.weight_decay,
            steps=steps,
            lr_shape=shape,
            warmup=run.warmup,
            final_lr=0.0 if shape == "constant" else final_lr,
        )
        for steps in (_plausible_steps(run) if run.steps is None else (run.steps,))
        for shape in (shapes if run.lr_shape is None else (run.lr_shape,))
    ]


def _plausible_steps(run: StatedRun) -> tuple[int, ...]:
    """Norms after falling schedules fall with the length of the run, so that the ends of the range suffice."""
    return tuple(max(1, math.ceil(times / run.rate)) for times in (FEWEST_TIMES, MOST_TIMES))


def _check(run: StatedRun) -> None:
    if run.lr_shape is not None:
        checks.one_of("lr_shape", run.lr_shape, get_args(LrShape))
    if run.rate >= 1:
        raise UsageError(
            f"weight decay {run.weight_decay:g} and lr {run.lr:g} must have a product below 1: give AdamW's "
            "weight_decay and the peak lr of the run"
        )
    if run.warmup and run.steps is None:
        raise UsageError(f"warmup={run.warmup} is a part of the run: give steps= too")
    if run.steps is not None and run.warmup >= run.steps:
        raise UsageError(f"warmup={run.warmup} is no part of a run of {run.steps} steps")
    if run.final_lr and run.lr_shape in (None, "constant"):
        raise UsageError(f"final_lr={run.final_lr:g} belongs to lr_shape=linear and lr_shape=cosine")
    if run.final_lr is not None and run.final_lr > run.lr:
        raise UsageError(f"final_lr={run.final_lr:g} must not be above lr={run.lr:g}")
