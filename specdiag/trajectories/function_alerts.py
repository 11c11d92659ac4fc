"""Alerts of a logged step: bounds of attention scores, rank of QK, channels of the stream, updates and norms.

The thresholds are provisional. Those of updates and norms lie between healthy runs of one tiny model and runs that were
spoilt on purpose (`benchmarks/instability.py`); for the others no run that failed was at hand. A limit lies above what
four finished models have (SmolLM2, MiniLM, AntiBERTy, rxnfp: docs/alarms.md); a ratio is that of a change within one
interval of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from specdiag.trajectories.alerts import Alert
from specdiag.trajectories.metric_log import LogEntry

SCORE_BOUND, QK_STABLE_RANK, CHANNEL_SIZE = "score_bound", "qk_stable_rank", "channel_size"
CHANNEL_INDEX = "channel_index"
"""Metrics of the log of norms: two of a head, and two of the largest channel of a residual stream."""


class Last(NamedTuple):
    """The last value of a number."""

    step: int
    value: float
    settled: int = 0
    """Logged steps up to this one over each of which it changed by less than a fifth."""


Values = Mapping[tuple[str, str], Last]
"""By metric and module."""
_SETTLED = 4
"""Settled steps after which a fall of rank raises an alert. A choice: in an honest run of a small LLaMA from scratch
all ranks fell from 11 to between 1 and 3 within 70 steps (`specdiag train tiny-llama-bytes`)."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Conditions of an alert on a number: it passes a limit or a multiple of it, or it changes by a ratio at once."""

    kind: Literal["scores", "rank", "channel", "norm", "update", "dead"]
    ratio: float
    """Smallest relative change from one logged step to the next; below 1 for a number that falls."""
    floor: float
    """A number at or below it raises no alert."""
    limit: float | None
    """Passing it, and each doubling of it, raises an alert."""
    name: str
    advice: str
    settled: int = 0
    """A change at once raises an alert after so many settled steps."""

    def speaks(self, last: Last | None, now: float) -> bool:
        """Tell whether a number raises an alert."""
        before = None if last is None else last.value
        if now <= self.floor:
            return False
        passed = -1 if before is None or self.limit is None else _level(before, self.limit)
        if self.limit is not None and now > self.limit and _level(now, self.limit) > passed:
            return True
        if last is None or before is None or before <= 0 or last.settled < self.settled:
            return False
        return now < self.ratio * before if self.ratio < 1 else now > self.ratio * before


RULES = {
    SCORE_BOUND: _Rule(
        "scores", 2.0, 1000.0, 4000.0, "the bound of the attention scores of",
        "such scores can saturate the softmax and overflow float16: lower the learning rate, or normalise queries and "
        "keys",
    ),
    QK_STABLE_RANK: _Rule(
        "rank", 0.5, 0.0, None, "the stable rank of QK of",
        "the head scores along fewer directions: check whether the loss stalls, and lower the learning rate or warm up "
        "longer",
        _SETTLED,
    ),
    CHANNEL_SIZE: _Rule(
        "channel", 1.5, 1.3, 4.0, "the rows of the down projections, over their median, of",
        "activations of that channel can overflow float16 and spoil low-bit quantisation: lower the learning rate, or "
        "raise the weight decay",
    ),
    "update_ratio": _Rule(
        "update", 15.0, 0.05, 0.5, "one step's update, over the norm of the weights, of",
        "such a step replaces what the matrix has learnt: lower the learning rate, or warm up longer",
    ),
    "frobenius_norm": _Rule(
        "norm", 4.0, 0.0, None, "the Frobenius norm of",
        "check whether the loss rises, and lower the learning rate or raise the weight decay",
    ),
    "stable_rank": _Rule(
        "rank", 0.5, 0.0, None, "the stable rank of",
        "the matrix acts along fewer directions: check whether the loss stalls, and lower the learning rate",
        _SETTLED,
    ),
    "weight_rms": _Rule(
        "dead", 0.5, -1.0, None, "the RMS of the weights of",
        "the matrix vanishes: check whether it still gets a gradient, and lower its weight decay",
    ),
}  # fmt: skip
"""By metric. Finished models reach 1,900 in score bounds and 3.1 in channels; a fall of effective rank by half is
`collapse` of `specdiag watch` too."""


def function_alerts(before: Values, rows: Iterable[LogEntry]) -> list[Alert]:
    """List what is wrong with the numbers of a logged step; one alert of each kind, of the module that changed most.

    Args:
        before: last values of earlier steps.
        rows: entries of one step; those of other metrics are passed over.
    """
    found: dict[str, list[tuple[float, LogEntry]]] = {}
    rows = list(rows)
    channels = {row.module: row.value for row in rows if row.metric == CHANNEL_INDEX}
    for row in rows:
        rule = RULES.get(row.metric)
        if rule is None or row.value is None:
            continue
        last = before.get((row.metric, row.module))
        if rule.speaks(last, row.value):
            change = row.value / last.value if last is not None and last.value else row.value
            found.setdefault(row.metric, []).append((-change if rule.ratio < 1 else change, row))
    return [
        _alert(RULES[metric], before, [row for _, row in sorted(own, key=lambda pair: -pair[0])], channels)
        for metric, own in found.items()
    ]


def latest_values(before: Values, rows: Iterable[LogEntry]) -> dict[tuple[str, str], Last]:
    """Give the value of each number that has a rule.

    Args:
        before: last values of earlier steps.
        rows: entries of one step.
    """
    return {
        (r.metric, r.module): _followed(before.get((r.metric, r.module)), r.step, r.value)
        for r in rows
        if r.metric in RULES and r.value is not None
    }


def _followed(last: Last | None, step: int, value: float) -> Last:
    is_settled = last is not None and abs(value - last.value) < 0.2 * abs(last.value)
    return Last(step, value, last.settled + 1 if last is not None and is_settled else 0)


def logged_alerts(rows: Sequence[LogEntry], after: int | None, until: int) -> list[Alert]:
    """List the alerts of the steps of a log, each against the logged step before it.

    Args:
        rows: entries of a log, one for each step, module and metric.
        after: steps up to this one are passed over; None for none.
        until: the last step.
    """
    by_step: dict[int, list[LogEntry]] = {}
    for row in rows:
        if row.step <= until and (row.metric in RULES or row.metric == CHANNEL_INDEX):
            by_step.setdefault(row.step, []).append(row)
    found: list[Alert] = []
    before: dict[tuple[str, str], Last] = {}
    for step in sorted(by_step):
        if after is None or step > after:
            found += function_alerts(before, by_step[step])
        before |= latest_values(before, by_step[step])
    return found


def _alert(rule: _Rule, before: Values, rows: Sequence[LogEntry], channels: Mapping[str, float | None]) -> Alert:
    worst = rows[0]
    assert worst.value is not None
    then = before.get((worst.metric, worst.module))
    where = worst.module
    if worst.metric == CHANNEL_SIZE:
        index = channels.get(worst.module)
        where = f"channel {'?' if index is None else int(index)} of the {worst.module or 'residual'} stream"
    was = "is" if then is None else f"went from {then.value:.4g} at step {then.step} to"
    limit = "" if rule.limit is None or worst.value <= rule.limit else f", above {rule.limit:g}"
    others = f" ({len(rows) - 1} more likewise)" if len(rows) > 1 else ""
    message = f"{rule.name} {where} {was} {worst.value:.4g}{limit}{others}; {rule.advice}"
    return Alert(step=worst.step, kind=rule.kind, module=worst.module, value=worst.value, message=message)


def _level(value: float, limit: float) -> int:
    level = 0
    while value > limit:
        value, level = value / 2, level + 1
    return level
