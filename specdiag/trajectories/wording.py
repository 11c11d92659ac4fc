"""A trajectory in a sentence: where the run's tails and norms went."""

from __future__ import annotations

from specdiag.trajectories.records import Trajectory

_SAME = 0.005
"""Largest change of a median exponent that is no change: they are printed with two digits."""
_FAMILIES = {"attention": "attention", "mlp": "MLP"}


def headline(trajectory: Trajectory) -> str:
    """Say how exponents and norms moved from the first step to the last, and from where on values are bad.

    Args:
        trajectory: of at least one step.
    """
    first, last = trajectory.steps[0].step, trajectory.steps[-1].step
    metric = "square_alpha" if any(row.metric == "square_alpha" for row in trajectory.rows) else "alpha"
    tails = [text for family in _FAMILIES if (text := _tails(trajectory, metric, family)) is not None]
    if first == last:
        seen = f"One step, {first}: a course takes two."
    else:
        seen = f"From step {first} to {last} {', '.join([*tails, *_norms(trajectory)]) or 'no number can be followed'}."
    return f"{seen}{_bad(trajectory)}"


def _tails(trajectory: Trajectory, metric: str, family: str) -> str | None:
    values = [value for _, value in trajectory.series(metric, family=family)]
    if len(values) < 2:
        return None
    change = values[-1] - values[0]
    how = "kept its tails" if abs(change) < _SAME else f"became {'lighter' if change > 0 else 'heavier'}-tailed"
    return f"{_FAMILIES[family]} {how} ({metric} {values[0]:.2f} to {values[-1]:.2f})"


def _norms(trajectory: Trajectory) -> list[str]:
    values = [value for _, value in trajectory.series("frobenius_norm")]
    if len(values) < 2 or not values[0]:
        return []
    change = values[-1] / values[0] - 1
    return [f"the median norm {'grew' if change > 0 else 'fell'} by {abs(change):.1%}"]


def _bad(trajectory: Trajectory) -> str:
    bad = [step for step in trajectory.steps if step.statuses.get("nonfinite", 0)]
    if not bad:
        return ""
    n = bad[0].statuses["nonfinite"]
    return f" NaN or infinite values since step {bad[0].step}, in {n} {'matrix' if n == 1 else 'matrices'} there."
