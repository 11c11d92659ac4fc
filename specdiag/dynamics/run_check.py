"""Check of a run: the norms that lr, decay and optimizer predict, compared with those that the run logged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np

from specdiag.decay.schedules import Schedule
from specdiag.dynamics.alignment import Alignment, alignments
from specdiag.dynamics.checking import NormError, compare_norms
from specdiag.dynamics.norm_log import NormedModule, NormLog, Series
from specdiag.dynamics.steady import removed, steady_norm, steps_to_steady
from specdiag.dynamics.updates import Update, update_of
from specdiag.dynamics.walk import expected
from specdiag.errors import UsageError
from specdiag.files import write_atomically
from specdiag.records import FUNCTION_ROLES, Family, Record, Role, stored_role
from specdiag.storage.kinds import NORM_CHECK
from specdiag.text import checks
from specdiag.text.counts import percent
from specdiag.trajectories.metric_log import LogEntry, entry

_FULL = 10
"""Multiple of 1/(1 - memory), in steps, after which the momentum counts as full: e^-10 of it is not."""
METRIC = "frobenius_norm"

_ASSUMED = (
    "Predicted: each module as a random walk from its first logged norm (arXiv 2512.08217, equations 1 and 2), under "
    "the lr and decay that were logged, in straight lines between logged steps. Nothing is fitted.",
    "Not in it: a falling loss, and cross-entropy at an output layer, which lengthen weights by pointing along them. "
    "Flagged modules are those whose measured cosine says so.",
)
_BY_GRADIENT = "Of SGD the mean logged gradient norm is an input: its steps have no size of their own."


class ModuleCheck(Record, frozen=True, kw_only=True):
    """A module's predicted and logged Frobenius norms."""

    module: str
    role: Role
    family: Family
    optimizer: str
    n: int
    """Number of compared steps. The prediction starts from the first logged one, which is not among them."""
    first: float
    """Logged norm that the prediction starts from."""
    last_step: int
    predicted: float
    """Norm at the last step."""
    logged: float
    """Norm at the last step."""
    error: float
    """predicted/logged - 1, at the last step."""
    worst_error: float
    """The error of largest size among all steps."""
    change: float
    """logged/first - 1: an error says little where nothing moved."""
    balance: float | None
    """Norm of the balance at the largest lr, with the decay of that step; None without decay."""
    steps_to_balance: int | None
    """Steps from the first logged one, at that lr held constant, until the norm is within 1 % of the balance."""
    alignment: Alignment | None = None


class RunCheck(Record, frozen=True, kw_only=True):
    """Prediction for a run, compared with its log."""

    schema: int = NORM_CHECK.schema
    run: str
    modules: tuple[ModuleCheck, ...]
    errors: tuple[NormError, ...]
    """Errors by step and module."""
    left_out: dict[str, str]
    """Reason for each module without a prediction."""
    assumptions: tuple[str, ...]

    def median_error(self) -> float:
        """Median over the modules of the absolute error at the last step."""
        return median(abs(m.error) for m in self.modules)

    def to_json(self) -> bytes:
        """Encode the check as one JSON object."""
        return msgspec.json.encode(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the check as JSON, whole or not at all.

        Args:
            path: file to write; one that is there is replaced.

        Returns:
            The path.
        """
        path = checks.path("path", path)
        write_atomically(path, self.to_json())
        return path


class Expected(Record, frozen=True, kw_only=True):
    """Predicted course of one module's norm, and the balance that it tends to."""

    module: str
    course: tuple[LogEntry, ...]
    balance: float | None
    steps_to_balance: int | None


def check_run(log: NormLog) -> RunCheck:
    """Compare predicted and logged norms of every module that a model covers.

    Args:
        log: of a norm watch.

    Raises:
        UsageError: no module can be checked; the message gives a reason.
    """
    left_out: dict[str, str] = {}
    predicted = expected_norms(log, left_out)
    norms = log.series(METRIC)
    aligned = {a.module: a for a in alignments(log)}
    errors = compare_norms(
        (e for p in predicted for e in p.course[1:]), (row for row in log.rows if row.metric == METRIC)
    )
    errors_of: dict[str, list[NormError]] = {}
    for error in errors:
        errors_of.setdefault(error.module, []).append(error)
    modules = {m.key: m for m in log.modules}
    checked: list[ModuleCheck] = []
    for p in predicted:
        own, m = errors_of.get(p.module), modules[p.module]
        if m.role in FUNCTION_ROLES:
            left_out[p.module] = "it is a product of matrices, which no optimizer decays"
            continue
        if not own:
            left_out[p.module] = "its norms are not finite"
            continue
        last, first = own[-1], norms[p.module][0][1]
        checked.append(
            ModuleCheck(
                module=p.module, role=stored_role(m.role), family=m.family, optimizer=m.optimizer or "", n=len(own),
                first=first, last_step=last.step, predicted=last.predicted, logged=last.logged, error=last.relative,
                worst_error=max((e.relative for e in own), key=abs), change=last.logged / first - 1, balance=p.balance,
                steps_to_balance=p.steps_to_balance, alignment=aligned.get(p.module),
            )
        )  # fmt: skip
    if not checked:
        reason = next(iter(left_out.values()), "no module was logged")
        raise UsageError(f"{log.run}: no norm can be checked: {reason}")
    by_gradient = any((m.optimizer or "").startswith("sgd") for m in log.modules)
    assumed = (*_ASSUMED, _BY_GRADIENT) if by_gradient else _ASSUMED
    return RunCheck(run=log.run, modules=tuple(checked), errors=errors, left_out=left_out, assumptions=assumed)


def expected_norms(log: NormLog, left_out: dict[str, str] | None = None) -> list[Expected]:
    """Predict the course of each module's norm from its first logged norm.

    Args:
        log: of a norm watch.
        left_out: gets an entry for each module without a prediction: its key and the reason.

    Returns:
        Courses at the logged steps of each module.
    """
    rates, decays, norms = (log.series(name) for name in ("lr", "weight_decay", METRIC))
    gradients = log.series("gradient_norm")
    walks: dict[object, dict[int, tuple[float, float]]] = {}
    courses: list[Expected] = []
    for m in log.modules:
        series = norms.get(m.key, [])
        reason = _reason_to_leave_out(m, series, rates.get(m.key))
        if reason is not None:
            if left_out is not None:
                left_out[m.key] = reason
            continue
        lr = [(s, v * m.lr_scale) for s, v in rates[m.key]]
        decay = [(s, v / m.lr_scale) for s, v in decays[m.key]]
        update = _update(m, gradients.get(m.key, []))
        (start, first), steps = series[0], [s - series[0][0] for s, _ in series]
        walk = _affine(walks, update, lr, decay, start, steps)
        square = first * first / m.n_values
        course = tuple(
            entry(start + s, m.key, METRIC, math.sqrt(m.n_values * (walk[s][0] + square * walk[s][1]))) for s in steps
        )
        courses.append(_with_balance(m, update, course, square, *_peak(lr, decay)))
    return courses


def _reason_to_leave_out(m: NormedModule, series: Series, lr: Series | None) -> str | None:
    if m.optimizer is None:
        return "no model covers what its optimizer does"
    if m.decay == "by weight":
        return "its decay differs from weight to weight"
    if m.role == "conv" and m.optimizer in ("muon", "scion-spectral", "scion-sign"):
        return "a convolution's steps are not modelled"
    if len(series) < 2 or not lr:
        return "it was logged once only" if series else "it was not logged"
    return "its first norm is 0" if series[0][1] == 0 else None


def _update(m: NormedModule, gradients: Series) -> Update:
    assert m.optimizer is not None
    coordinates = [g * g / m.n_values for _, g in gradients]
    gradient_rms = math.sqrt(sum(coordinates) / len(coordinates)) if coordinates else 1.0
    return update_of(
        m.optimizer, (m.rows, m.cols), momentum=m.momentum, betas=m.betas, gradient_rms=gradient_rms or 1.0
    )


def _affine(
    walks: dict[object, dict[int, tuple[float, float]]],
    update: Update,
    lr: Series,
    decay: Series,
    start: int,
    steps: Sequence[int],
) -> dict[int, tuple[float, float]]:
    """Mean square of each step as (a, b) of a + b S_0, kept in `walks` for modules that differ by S_0 only."""
    key = update, tuple(lr), tuple(decay), start, tuple(steps)
    if key not in walks:
        # A log that begins within a run begins with a full momentum: walk some steps more before its first one.
        before = min(start, math.ceil(_FULL / (1 - update.memory)))
        lr_at, decay_at = (_interpolate(series, start - before, steps[-1] + before) for series in (lr, decay))
        if start == 0 and update.optimizer.startswith("adamw"):
            lr_at, decay_at = _bias_corrected(lr_at, decay_at, update.kept[0])
        noted = [s + before for s in steps]
        zero, one = (expected(update, lr_at, decay_at, noted[-1], at, noted) for at in (0.0, 1.0))
        grown, left = zero[before], one[before] - zero[before]
        share = {s: (one[s + before] - zero[s + before]) / left for s in steps}
        walks[key] = {s: (zero[s + before] - share[s] * grown, share[s]) for s in steps}
    return walks[key]


def _interpolate(series: Series, start: int, steps: int) -> Schedule:
    """A schedule over a walk. Its step t, from 1 on, is the update that was logged at start + t - 1."""
    at, values = zip(*series, strict=True)
    line = np.interp(np.arange(start, start + steps), at, values).tolist()
    return lambda t: line[int(t) - 1]


def _bias_corrected(lr: Schedule, decay: Schedule, kept: float) -> tuple[Schedule, Schedule]:
    """Adam's longer first steps as a larger lr with the same decay: by (1 - b^2t)^e/(1 - b^t), b = beta1.

    e = 1/2 is exact for the lengths of steps, e = 1 for what they share with much later ones. 3/4 is chosen here: on
    noise it keeps norms within 2 % from the first step on, where no correction leaves errors of 12 %.
    """

    def longer(t: int) -> float:
        return (1 - kept ** (2 * t)) ** 0.75 / (1 - kept**t)

    return lambda t: lr(t) * longer(t), lambda t: decay(t) / longer(t)


def _peak(lr: Series, decay: Series) -> tuple[float, float]:
    argument = dict(decay)
    step, rate = max(lr, key=lambda pair: pair[1])
    return rate, argument.get(step, 0.0)


def _with_balance(
    m: NormedModule, update: Update, course: tuple[LogEntry, ...], square: float, lr: float, decay: float
) -> Expected:
    rms = steady_norm(update, lr, decay) if lr else None
    steps = steps_to_steady(square, rms * rms, removed(update, lr, decay)) if rms else None
    balance = None if rms is None else rms * math.sqrt(m.n_values)
    return Expected(module=m.key, course=course, balance=balance, steps_to_balance=steps)


def sentences(check: RunCheck) -> Iterator[str]:
    """Write a check in sentences: the errors, flagged modules, and modules left out.

    Args:
        check: result of `check_run`.
    """
    n = len(check.modules)
    worst = max(check.modules, key=lambda m: abs(m.error))
    yield (
        f"Norms of {n} modules after {worst.last_step:,} steps: predicted within {percent(check.median_error(), 1)} in "
        f"the median, {percent(abs(worst.error), 1)} at worst ({worst.module})."
    )
    moved = median(abs(m.change) for m in check.modules)
    yield f"The norms themselves moved by {percent(moved, 1)} in the median."
    early = [m for m in check.modules if m.steps_to_balance and m.last_step < m.steps_to_balance]
    if early:
        yield (
            f"{len(early)} of {n} cannot be in their balance yet: within 1 % of it takes "
            f"{min(m.steps_to_balance or 0 for m in early):,} steps or more at the largest lr."
        )
    for a in (m.alignment for m in check.modules):
        if a is not None and a.flagged and a.share is not None:
            yield (
                f"{a.module}: mean cosine {a.cosine:+.3g} between update and weights, where momentum makes "
                f"{a.cosine_of_momentum:+.2g}. The rest changes the squared norm by {a.share:+.2g} times what random "
                "steps add."
            )
    reasons: dict[str, list[str]] = {}
    for name, why in check.left_out.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield f"{len(names)} left out, such as {names[0]}: {why}."
