"""The check whether the weights are as large as a stated decay predicts.

AdamW with lr gamma and decay lambda keeps a weight at a root mean square of sqrt(gamma/(2 lambda)) once the start is
forgotten, and a falling lr takes it below that: by how much depends on lr x decay x steps. Many other histories end at
the same size, so an agreement is no proof, and the decay that was used cannot be read off the weights: the answer
names none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import quantiles

from specdiag.auditing.records import DecayAnswer, DecayVerdict
from specdiag.auditing.stated_run import FEWEST_TIMES, FINAL_SHARE, MOST_TIMES, Band, StatedRun, band
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Check, Observation
from specdiag.records import ModuleRecord
from specdiag.text.counts import percent

_ENOUGH = 8
"""Fewest matrices of which quartiles are taken. A choice."""
_FORGOTTEN = math.exp(-1)
"""With more than this share of the start's square left, there is no answer unless the start is stated. A choice: the
share after 1/(lr x decay) steps of a schedule that falls to zero."""
_ASSUMED = (
    "AdamW with decoupled decay at this peak lr for every matrix of attention and MLP, no gradient-coupled L2",
    "updates that do not point along the weights on average, of about one in root mean square over the momentum",
    "the last checkpoint of the run, without averaging (EMA), merging, fine-tuning with other settings, a "
    "norm-constrained optimizer or muP",
)


def answer_on_decay(records: Sequence[ModuleRecord], run: StatedRun, check: Check) -> DecayAnswer:
    """Say whether the weights are as large as a stated decay predicts.

    Args:
        records: rows of the report; those of attention and MLP are used.
        run: the settings that are stated.
        check: the check `decay`, whose threshold is the largest factor outside of the range.

    Returns:
        `consistent`, `inconsistent` or `cannot tell`, with the ranges of root mean squares behind it.

    Raises:
        UsageError: the run would forget its weights more than 2000 times.
    """
    measured = [(r, size) for r in records if (size := _root_mean_square(r)) is not None]
    sizes = [size for _, size in measured]
    quarters = quantiles(sizes, n=4) if len(sizes) > 1 else None
    expected = band(run, max((_he(r) for r, _ in measured), default=0.0))
    answer, reason = _verdict(quarters, len(sizes), expected, run, check.threshold or 1.0)
    return DecayAnswer(
        answer=answer,
        reason=reason,
        weight_decay=run.weight_decay,
        lr=run.lr,
        steps=run.steps,
        lr_shape=run.lr_shape,
        warmup=run.warmup,
        final_lr=run.final_lr,
        initial_rms=run.initial_rms,
        expected_low=expected.low,
        expected_high=expected.high,
        possible_low=expected.possible_low,
        possible_high=expected.possible_high,
        rms_low=None if quarters is None else quarters[0],
        rms_median=None if quarters is None else quarters[1],
        rms_high=None if quarters is None else quarters[2],
        n_matrices=len(sizes),
        assumptions=(*_ASSUMED, *_unknown(run)),
    )


def decay(subject: Subject) -> list[Observation]:
    """Observe how far the median weight lies outside of the possible range, as a factor.

    Args:
        subject: the subject of the audit, with the answer on a stated decay.

    Returns:
        One observation where the answer is `inconsistent`, else none.
    """
    answer = subject.decay
    if answer is None or answer.answer != "inconsistent" or answer.rms_median is None:
        return []
    return [Observation("decay", None, _factor(answer.rms_median, answer.possible_low, answer.possible_high))]


def _verdict(
    quarters: list[float] | None, n: int, expected: Band, run: StatedRun, limit: float
) -> tuple[DecayVerdict, str]:
    if quarters is None or n < _ENOUGH:
        return "cannot tell", f"{n} matrices of attention and MLP are too few"
    if run.initial_rms is None and run.steps is not None and expected.left > _FORGOTTEN:
        return "cannot tell", (
            f"after {run.steps} steps up to {percent(expected.left)} of the squared norm is that of the start, which "
            f"is not stated (initial_rms=); it is forgotten over {1 / run.rate:.0f} steps"
        )
    low, high, possible_low, possible_high, _ = expected
    far = [_factor(size, low, high) > limit for size in quarters]
    if all(_factor(size, possible_low, possible_high) > limit for size in quarters):
        return "inconsistent", f"three quarters of the matrices lie {limit:g} times or more outside of the range"
    if all(far):
        return "cannot tell", "the matrices lie far outside of the range, and another start than balance explains them"
    if any(far):
        return "cannot tell", "some matrices lie within the range, others far outside"
    return "consistent", f"half of the matrices and more lie within {limit:g} times of the range"


def _unknown(run: StatedRun) -> Iterator[str]:
    """Write what the range covers because it is not stated."""
    if run.steps is None:
        yield f"steps= is not stated: lr x decay x steps between {FEWEST_TIMES:g} and {MOST_TIMES:g}"
    if run.lr_shape is None:
        yield (
            "lr_shape= is not stated: constant (upper limit) or a cosine to zero (lower limit); the answer holds for "
            "straight lines too"
        )
    if run.lr_shape != "constant" and run.final_lr is None:
        yield f"final_lr= is not stated: 0; the answer holds for up to {FINAL_SHARE:g} of the peak"
    if run.initial_rms is None:
        yield "initial_rms= is not stated: balance at the peak; the answer holds for any start from 0 to He's"


def _factor(size: float, low: float, high: float) -> float:
    """Compute how many times a size lies above or below a range; 1 within."""
    return max(1.0, size / high, low / size)


def _root_mean_square(r: ModuleRecord) -> float | None:
    if r.family not in ("attention", "mlp") or not r.frobenius_norm:
        return None
    return r.frobenius_norm / (r.rows * r.cols * r.n_slices) ** 0.5


def _he(r: ModuleRecord) -> float:
    """Root mean square of He's initialisation, the largest that is usual."""
    return math.sqrt(2 / r.cols)
