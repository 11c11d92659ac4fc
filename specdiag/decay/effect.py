"""Will a changed decay show before the run ends? The weight norms that it predicts, and a verdict.

The model is AdamW's (decoupled decay), with updates that do not point along the weights on average:

    S_t = (1 - lr_t lambda)^2 S_{t-1} + R lr_t^2 C

for the squared norm S of a module (*Correction of Decoupled Weight Decay*, arXiv 2512.08217, equation 1). R, what
momentum adds, and C, the squared norm of an update, cancel here. A checkpoint does not tell whether the run is in the
balance of its base decay at the present lr: this is assumed. The first steps do not depend on that assumption, each
changes the norm by lr x lambda x (1 - ratio). Later, weights that still grow to their balance change less than
predicted, and weights above it (after the lr fell) change more.

Only norms are predicted. A changed norm is necessary for an effect on the loss, and no evidence of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Literal, get_args

from msgspec.structs import replace

from specdiag.errors import UsageError
from specdiag.records import Record
from specdiag.text import checks

Answer = Literal["worth a run", "cannot show in the steps left", "explained by shape", "the two measures disagree"]
LrSchedule = Literal["constant", "to zero"]

SHOWS = 0.01
"""Median change of the norms below which the plan counts as without effect. A choice: like an lr changed by 1 %."""
GEOMETRY = 0.8
"""A plan of which shapes explain more than this share counts as explained by shape. A choice."""
AGREE = 0.7
"""Correlation of square_alpha with rho from which on they call for the same plan. A choice: half of the variance."""
_BLOCKS = 512
"""Number of stretches of constant lr that stand for a falling lr; the norms are off by some 1e-6."""


class Verdict(Record, frozen=True, kw_only=True):
    """Answer to whether a plan of per-module decays is worth a run, with the predictions behind it.

    Changes are relative: -0.02 is a norm 2 % smaller than it would be under the base decay at the same step.
    """

    answer: Answer
    reasons: tuple[str, ...]
    changes: tuple[float, ...]
    """Changes of each module's norm after the steps left, in the order given."""
    balanced_changes: tuple[float | None, ...]
    """The same after any number of steps at this lr, about ratio^-1/2 - 1; None where ratio or decay is 0."""
    median_change: float
    """Median of the absolute changes."""
    uniform_ratio: float
    """The alternative to the plan: one ratio for all modules, the parameter-weighted mean of the plan's ratios."""
    uniform_change: float
    """Change of every norm under the uniform ratio."""
    median_distance: float
    """Median of the absolute differences between the plan's changes and `uniform_change`."""
    time_constant: float | None
    """1/(mean lr x base decay): the steps over which weights forget; None if nothing decays."""
    steps_to_show: int | None
    """Steps at this lr, held constant, until both medians reach `SHOWS`; None if they never do."""
    shape_share: float | None
    """Share of the plan explained by the shapes of the matrices, 0 to 1; None if unknown."""
    needs_agreement: bool = False
    """True for a plan that rests on square_alpha, one of two ways to take the shapes out."""
    agreement: float | None = None
    """Correlation of square_alpha with rho; None where fewer than three modules have both."""
    steps_left: int
    lr: float
    base_weight_decay: float
    schedule: LrSchedule


def norm_factor(
    ratio: float, *, base_weight_decay: float, lr: float, steps: int, schedule: LrSchedule = "constant"
) -> float:
    """Predict a module's norm after a number of steps, relative to its norm under the base decay.

    Args:
        ratio: multiple of the base decay, 0 or more.
        base_weight_decay: lambda, AdamW's argument.
        lr: learning rate of the next step.
        steps: number of optimizer steps.
        schedule: `constant`, or `to zero`: the lr falls in a straight line over these steps.

    Returns:
        The norm at `ratio` times the base decay over the norm at the base decay.
    """
    rate = lr * base_weight_decay
    changed = _squared_norm(ratio, rate, steps, schedule)
    return math.sqrt(changed / _squared_norm(1.0, rate, steps, schedule))


def balanced_factor(ratio: float, *, base_weight_decay: float, lr: float) -> float | None:
    """Predict the limit of `norm_factor` after many steps at a constant lr: ratio^-1/2 but for terms of lr x decay.

    Args:
        ratio: multiple of the base decay, 0 or more.
        base_weight_decay: lambda, AdamW's argument.
        lr: learning rate of every step.

    Returns:
        The limit; None where ratio, decay or lr is 0, for without decay the norm only grows.
    """
    rate = lr * base_weight_decay
    return math.sqrt((2 - rate) / (ratio * (2 - ratio * rate))) if ratio * rate > 0 else None


def verdict(
    ratios: Sequence[float],
    parameters: Sequence[int],
    *,
    base_weight_decay: float,
    lr: float,
    steps_left: int,
    shape_share: float | None = None,
    agreement: float | None = None,
    needs_agreement: bool = False,
    schedule: LrSchedule = "constant",
) -> Verdict:
    """Judge whether a plan is worth a run, by its norms and those of uniform decay of the same mean.

    Where a plan is explained by shape and has too few steps too, the answer is `explained by shape`: more steps would
    not help. The reasons name both.

    Args:
        ratios: multiple of the base decay for each module that takes part.
        parameters: number of parameters of each module, in the same order.
        base_weight_decay: AdamW's argument at ratio 1.
        lr: learning rate of the next step.
        steps_left: number of optimizer steps under the plan.
        shape_share: share of the plan that the matrices' shapes explain, 0 to 1; None if unknown.
        agreement: correlation of square_alpha with rho; None where fewer than three modules have both.
        needs_agreement: True where the plan rests on square_alpha.
        schedule: course of the lr over the steps left.

    Raises:
        UsageError: there are no modules, a number is out of range, or the decay would remove all weights in a step.
    """
    ratios, parameters = [float(ratio) for ratio in ratios], [int(count) for count in parameters]
    _check(ratios, parameters, base_weight_decay, lr, steps_left, shape_share, schedule)
    uniform = sum(r * n for r, n in zip(ratios, parameters, strict=True)) / sum(parameters)
    rate = lr * base_weight_decay
    change = _changes([*ratios, uniform], rate, steps_left, schedule)
    balanced = [balanced_factor(r, base_weight_decay=base_weight_decay, lr=lr) for r in ratios]
    mean_rate = rate / 2 if schedule == "to zero" else rate
    unanswered = Verdict(
        answer="worth a run",
        reasons=(),
        changes=tuple(change[r] for r in ratios),
        balanced_changes=tuple(None if factor is None else factor - 1 for factor in balanced),
        median_change=median(abs(change[r]) for r in ratios),
        uniform_ratio=uniform,
        uniform_change=change[uniform],
        median_distance=median(abs(change[r] - change[uniform]) for r in ratios),
        time_constant=1 / mean_rate if mean_rate else None,
        steps_to_show=_steps_to_show(ratios, uniform, rate),
        shape_share=shape_share,
        agreement=agreement,
        needs_agreement=needs_agreement,
        steps_left=steps_left,
        lr=lr,
        base_weight_decay=base_weight_decay,
        schedule=schedule,
    )
    return replace(unanswered, answer=_answer(unanswered), reasons=tuple(_reasons(unanswered)))


def _squared_norm(ratio: float, rate: float, steps: int, schedule: LrSchedule) -> float:
    """S after the steps, from S = 1 in the balance of ratio 1, where an update adds what the decay removes."""
    squared, added = 1.0, rate * (2 - rate)
    for share, count in _stretches(steps, schedule):
        left = math.exp(2 * count * math.log1p(-share * rate * ratio))
        lost = share * rate * ratio * (2 - share * rate * ratio)
        updates = (1 - left) / lost if lost else count
        squared = left * squared + share * share * added * updates
    return squared


def _stretches(steps: int, schedule: LrSchedule) -> Iterator[tuple[float, int]]:
    """Mean lr as a share of the first, and number of steps, of each stretch."""
    if schedule == "constant":
        yield 1.0, steps
        return
    pieces = min(steps, _BLOCKS)
    for piece in range(pieces):
        start, end = piece * steps // pieces, (piece + 1) * steps // pieces
        yield 1 - (start + end - 1) / 2 / steps, end - start


def _changes(ratios: Sequence[float], rate: float, steps: int, schedule: LrSchedule) -> Mapping[float, float]:
    base = _squared_norm(1.0, rate, steps, schedule)
    return {ratio: math.sqrt(_squared_norm(ratio, rate, steps, schedule) / base) - 1 for ratio in set(ratios)}


def _steps_to_show(ratios: Sequence[float], uniform: float, rate: float) -> int | None:
    def shows(steps: int) -> bool:
        change = _changes([*ratios, uniform], rate, steps, "constant")
        distance = median(abs(change[r] - change[uniform]) for r in ratios)
        return min(distance, median(abs(change[r]) for r in ratios)) >= SHOWS

    if rate == 0:
        return None
    high = 1
    while not shows(high):
        high *= 2
        if high * rate > 1000:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def _answer(verdict: Verdict) -> Answer:
    if verdict.shape_share is not None and verdict.shape_share > GEOMETRY:
        return "explained by shape"
    if verdict.needs_agreement and (verdict.agreement is None or verdict.agreement < AGREE):
        return "the two measures disagree"
    if min(verdict.median_change, verdict.median_distance) < SHOWS:
        return "cannot show in the steps left"
    return "worth a run"


def _reasons(verdict: Verdict) -> Iterator[str]:
    n, falling = len(verdict.changes), verdict.schedule == "to zero"
    if verdict.time_constant is None:
        yield f"Nothing decays: lr {verdict.lr:g} times base decay {verdict.base_weight_decay:g} is 0."
    else:
        formula = "2/(peak lr x decay)" if falling else "1/(lr x decay)"
        half = ", for an lr that falls to zero has half its peak in the mean" if falling else ""
        yield (
            f"A changed decay acts over {formula} = {verdict.time_constant:,.0f} steps{half}. "
            f"{verdict.steps_left:,} are left, {verdict.steps_left / verdict.time_constant:.2g} of that."
        )
    yield (
        f"By then the norms of {n} modules change by {_percent(verdict.median_change)} in the median "
        f"({_percent(min(verdict.changes), '+')} to {_percent(max(verdict.changes), '+')}){_final_change(verdict)}."
    )
    yield (
        f"Uniform decay of equal mean, {verdict.uniform_ratio:.3g} times the base, changes all norms by "
        f"{_percent(verdict.uniform_change, '+')}. The plan differs from that by {_percent(verdict.median_distance)} "
        "(median)."
    )
    if min(verdict.median_change, verdict.median_distance) < SHOWS:
        what = "The plan" if verdict.median_change < SHOWS else "Its difference from uniform decay"
        after = verdict.steps_to_show
        more = f"about {after:,} steps at lr {verdict.lr:g} would" if after else "no number of steps at this lr would"
        yield f"{what} moves the norms by less than {_percent(SHOWS)}, too little to show; {more} reach that."
    if verdict.shape_share is not None:
        tail = ": an untrained network would get nearly the same decays" if verdict.shape_share > GEOMETRY else ""
        yield f"The shapes of the matrices explain {_percent(verdict.shape_share)} of the plan{tail}."
    if verdict.needs_agreement and verdict.agreement is None:
        yield "Fewer than three modules have both square_alpha and rho, so nothing confirms the plan."
    elif verdict.needs_agreement and verdict.agreement is not None and verdict.agreement < AGREE:
        yield (
            f"rho, the other measure without shapes, orders the modules differently: its correlation with "
            f"square_alpha is {verdict.agreement:+.2f}, below {AGREE}."
        )
    yield "Predicted for AdamW in balance at the base decay. Changed norms do not imply a changed loss."


def _final_change(verdict: Verdict) -> str:
    known = [abs(change) for change in verdict.balanced_changes if change is not None]
    if verdict.schedule == "to zero":  # the balance moves with the lr, so the last norms may lie beyond it
        return ""
    return f", and by {_percent(median(known))} after many more steps" if known else ""


def _percent(share: float, sign: str = "") -> str:
    digits = ".0f" if abs(share) >= 0.1 else ".2g"
    return f"{100 * share:{sign}{digits}} %"


def _check(
    ratios: Sequence[float],
    parameters: Sequence[int],
    base_weight_decay: float,
    lr: float,
    steps_left: int,
    shape_share: float | None,
    schedule: str,
) -> None:
    if not ratios:
        raise UsageError("no module takes part in this plan: there is nothing to predict")
    checks.one_of("lr_schedule", schedule, get_args(LrSchedule))
    checks.rate("base_weight_decay", base_weight_decay)
    checks.rate("lr", lr)
    checks.whole("steps_left", steps_left, least=0)
    if not all(math.isfinite(ratio) and ratio >= 0 for ratio in ratios):
        raise UsageError(
            "a ratio of the plan is negative or no number: every module needs a multiple of the base decay"
        )
    if min(parameters) <= 0:
        raise UsageError(f"a module of {min(parameters)} parameters has no weight to decay")
    if shape_share is not None and not 0 <= shape_share <= 1:
        raise UsageError(f"shape share is {shape_share:g}: a share lies between 0 and 1")
    most = lr * base_weight_decay * max(1.0, *ratios)
    if most >= 1:
        raise UsageError(
            f"lr {lr:g} x weight decay {base_weight_decay:g} x ratio {max(1.0, *ratios):g} is {most:.3g}: a step would "
            "remove all weights; weight_decay= is the optimizer's argument, before it is multiplied by the lr"
        )
