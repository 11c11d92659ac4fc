"""A trajectory in a sentence: where the run's tails and norms went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi
from statistics import fmean, median

from specdiag.spectra.null import null_moments
from specdiag.spectra.square import square_sd
from specdiag.text.counts import percent
from specdiag.trajectories.alerts import Alert
from specdiag.trajectories.records import TrackedModule, Trajectory

_SAME = 0.0005
"""Largest relative change that is printed as 0.0 %."""
_FAMILIES = {"attention": "Attention", "mlp": "The MLP"}


def headline(trajectory: Trajectory) -> str:
    """Say how exponents and norms moved from the first step to the last, and from where on values are bad.

    Only matrices that have the number at both steps count.

    Args:
        trajectory: of at least one step.
    """
    first, last = trajectory.steps[0].step, trajectory.steps[-1].step
    if first == last:
        return f"Only step {first} was read. A comparison over time needs two steps.{_bad(trajectory)}"
    sentences = [text for text in (tails(trajectory), *_norms(trajectory)) if text]
    said = " ".join(sentences or ["No number can be followed."])
    return f"From step {first} to {last} {said[0].lower()}{said[1:]}{_bad(trajectory)}"


def tails(trajectory: Trajectory) -> str:
    """Say how the exponents of attention and MLP moved from the first step to the last; empty of a single step.

    Args:
        trajectory: of at least one step.
    """
    if len(trajectory.steps) == 1:
        return ""
    metric = "square_alpha" if any(row.metric == "square_alpha" for row in trajectory.rows) else "alpha"
    return " ".join(text for family in _FAMILIES if (text := _tails(trajectory, metric, family)) is not None)


def watch_headline(trajectory: Trajectory, alerts: Sequence[Alert]) -> str:
    """Say whether a run raised alerts, and which one first.

    Args:
        trajectory: the run, with every step that was looked at.
        alerts: of these steps, in their order.
    """
    steps = [s.step for s in trajectory.steps]
    n = f"{len(steps)} {'checkpoint' if len(steps) == 1 else 'checkpoints'}"
    seen = f"{n}, step {steps[0]}" if len(steps) == 1 else f"{n}, steps {steps[0]} to {steps[-1]}" if steps else n
    left_out = f" {len(trajectory.dropped)} could not be read." if trajectory.dropped else ""
    if not alerts:
        return f"No alert in {seen}.{left_out}"
    count = f"{len(alerts)} {'alert' if len(alerts) == 1 else 'alerts'}"
    return f"{count} in {seen}; the first at step {alerts[0].step}: {alerts[0].message}.{left_out}"


def _tails(trajectory: Trajectory, metric: str, family: str) -> str | None:
    before, after = _ends(trajectory, metric)
    modules = [m for m in trajectory.modules if m.family == family and m.key in before]
    if not modules:
        return None
    change = median(after[m.key] - before[m.key] for m in modules)
    redrawn = 2 / pi**0.5 * fmean(_sd(m, metric) for m in modules)
    low, high = (median(values[m.key] for m in modules) for values in (before, after))
    how = "kept its tails" if abs(change) < redrawn else f"became {'lighter' if change > 0 else 'heavier'}-tailed"
    return f"{_FAMILIES[family]} {how} ({metric} {low:.2f} to {high:.2f})."


def _sd(module: TrackedModule, metric: str) -> float:
    """Standard deviation over random matrices: two of them differ by 2/sqrt(pi) of it in the mean."""
    shape = (module.rows, module.cols)
    return square_sd(shape) if metric == "square_alpha" else null_moments(shape)[1]


def _norms(trajectory: Trajectory) -> list[str]:
    before, after = _ends(trajectory, "frobenius_norm")
    changes = [after[key] / before[key] - 1 for key in before if before[key]]
    if not changes:
        return []
    change = median(changes)
    if abs(change) < _SAME:
        return ["Norms kept their size."]
    return [f"Norms {'grew' if change > 0 else 'fell'} by {percent(abs(change), 1)} in the median."]


def _ends(trajectory: Trajectory, metric: str) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Give the values at the first and at the last step, of the matrices that have one at both."""
    steps = (trajectory.steps[0].step, trajectory.steps[-1].step)
    before, after = (
        {row.module: row.value for row in trajectory.rows if row.metric == metric and row.step == step}
        for step in steps
    )
    both = [key for key in before if before[key] is not None and after.get(key) is not None]
    return {key: before[key] or 0.0 for key in both}, {key: after[key] or 0.0 for key in both}


def _bad(trajectory: Trajectory) -> str:
    bad = [step for step in trajectory.steps if step.statuses.get("nonfinite", 0)]
    if not bad:
        return ""
    n = bad[0].statuses["nonfinite"]
    return f" NaN or infinite values since step {bad[0].step}, in {n} {'matrix' if n == 1 else 'matrices'} there."
