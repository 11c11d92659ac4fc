"""The check whether the weights are as large as a stated decay predicts.

AdamW with lr gamma and decay lambda keeps a weight at a root mean square of sqrt(gamma/(2 lambda)) once the start is
forgotten, which takes some 1/(gamma lambda) steps. Many other histories end at the same size, so an agreement is no
proof, and the decay that was used cannot be read off the weights: the answer names none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import quantiles

from specdiag.auditing.records import DecayAnswer, DecayVerdict
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Check, Observation
from specdiag.errors import UsageError
from specdiag.records import ModuleRecord

_AFTER_COSINE = 0.45
"""Norm after a cosine to zero over that in balance at peak lr (arXiv 2512.08217, App. A: 0.2026 of its square)."""
_ENOUGH = 8
_ASSUMPTIONS = (
    "AdamW with decoupled decay at this peak lr for every matrix of attention and MLP, no gradient-coupled L2",
    "updates that do not point along the weights on average, of about one in root mean square over the momentum",
    "a run of several times 1/(lr x decay) steps; a constant lr (upper limit) or one that falls to zero (lower limit)",
    "no averaged (EMA) or merged weights, no fine-tuning with other settings, no norm-constrained optimizer, no muP",
)


def answer_on_decay(
    records: Sequence[ModuleRecord], weight_decay: float, lr: float, steps: int | None, check: Check
) -> DecayAnswer:
    """Say whether the weights are as large as a stated decay predicts.

    Args:
        records: rows of the report; those of attention and MLP are used.
        weight_decay: AdamW's decoupled decay.
        lr: peak learning rate.
        steps: optimizer steps of the run, None where they are not known.
        check: the check `decay`, whose threshold is the largest factor outside of the range.

    Returns:
        `consistent`, `inconsistent` or `cannot tell`, with the ranges of root mean squares behind it.

    Raises:
        UsageError: a number is out of range.
    """
    if not (0 < weight_decay < math.inf and 0 < lr < math.inf) or weight_decay * lr >= 1:
        raise UsageError(
            f"weight decay {weight_decay:g} and lr {lr:g} must be positive, and their product below 1: "
            "give AdamW's weight_decay and the peak lr of the run"
        )
    if steps is not None and steps < 1:
        raise UsageError(f"steps {steps} must be at least 1: the optimizer steps of the run")
    high = math.sqrt(lr / (2 * weight_decay))
    sizes = [size for r in records if (size := _root_mean_square(r)) is not None]
    quarters = quantiles(sizes, n=4) if len(sizes) > 1 else None
    answer, reason = _verdict(quarters, len(sizes), (_AFTER_COSINE * high, high), weight_decay * lr, steps, check)
    return DecayAnswer(
        answer=answer,
        reason=reason,
        weight_decay=weight_decay,
        lr=lr,
        steps=steps,
        expected_low=_AFTER_COSINE * high,
        expected_high=high,
        rms_low=None if quarters is None else quarters[0],
        rms_median=None if quarters is None else quarters[1],
        rms_high=None if quarters is None else quarters[2],
        n_matrices=len(sizes),
        assumptions=_ASSUMPTIONS,
    )


def decay(subject: Subject) -> list[Observation]:
    """Observe how far the median weight lies outside of the expected range, as a factor.

    Args:
        subject: the subject of the audit, with the answer on a stated decay.

    Returns:
        One observation where the answer is `inconsistent`, else none.
    """
    answer = subject.decay
    if answer is None or answer.answer != "inconsistent" or answer.rms_median is None:
        return []
    return [Observation("decay", None, _factor(answer.rms_median, (answer.expected_low, answer.expected_high)))]


def _verdict(
    quarters: list[float] | None,
    n: int,
    expected: tuple[float, float],
    rate: float,
    steps: int | None,
    check: Check,
) -> tuple[DecayVerdict, str]:
    if quarters is None or n < _ENOUGH:
        return "cannot tell", f"{n} matrices of attention and MLP are too few"
    if steps is not None and steps * rate < 1:
        return "cannot tell", f"{steps} steps are fewer than the {1 / rate:.0f} over which weights forget their start"
    limit = check.threshold or 1.0
    far = [_factor(size, expected) > limit for size in quarters]
    if all(far):
        return "inconsistent", f"three quarters of the matrices lie {limit:g} times or more outside of the range"
    if any(far):
        return "cannot tell", "some matrices lie within the range, others far outside"
    return "consistent", f"half of the matrices and more lie within {limit:g} times of the range"


def _factor(size: float, expected: tuple[float, float]) -> float:
    """Compute how many times a size lies above or below a range; 1 within."""
    low, high = expected
    return max(1.0, size / high, low / size)


def _root_mean_square(r: ModuleRecord) -> float | None:
    if r.family not in ("attention", "mlp") or not r.frobenius_norm:
        return None
    return r.frobenius_norm / (r.rows * r.cols * r.n_slices) ** 0.5
