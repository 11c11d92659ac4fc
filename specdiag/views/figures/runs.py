"""A panel of lines over steps, a line for each role, and the caption: what the figures of runs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from specdiag.errors import UsageError
from specdiag.records import FUNCTION_ROLES, AnyRole, Family, Role, stored_role
from specdiag.text import checks
from specdiag.trajectories.records import Trajectory
from specdiag.views.figures.palette import RoleStyle, palette
from specdiag.views.figures.style import plain

Roles = Sequence[tuple[Family, AnyRole]]
_DRAWN_AS: dict[AnyRole, Role] = {"qk": "q", "ov": "o", "du": "down"}
"""Products have the colour and marker of one of their factors, and a dotted line."""
_MARKERS_UP_TO = 40
_LEAST_SHARE = 0.02
"""Least height of an axis, as a share of its values: below lies rounding."""


def roles_with(
    trajectory: Trajectory, metrics: Sequence[str], roles: str | Sequence[str], *, products: bool = False
) -> list[tuple[Family, AnyRole]]:
    """Choose the roles to draw.

    Args:
        trajectory: the run.
        metrics: of which a role must have a value of one.
        roles: only these; empty for all.
        products: take qk, ov and du too, where the run has rows of the function.

    Raises:
        UsageError: there is no such role, or none has a value.
    """
    roles = checks.texts("roles", roles)
    present = trajectory.roles()
    if products:
        present += [pair for pair in trajectory.roles("function") if pair[1] in FUNCTION_ROLES]
    missing = [role for role in roles if role not in {r for _, r in present}]
    if missing:
        raise UsageError(
            f"{trajectory.run} has no role {missing[0]}; it has {', '.join(dict.fromkeys(r for _, r in present))}"
        )
    chosen = [
        pair
        for pair in present
        if (not roles or pair[1] in roles) and any(trajectory.series(m, pair[1], family=pair[0]) for m in metrics)
    ]
    if not chosen:
        raise UsageError(f"{trajectory.run}: nothing that was asked for has a value of {' or '.join(metrics)}")
    return chosen


def role_lines(axes: Axes, trajectory: Trajectory, metric: str, roles: Roles, *, relative: bool = False) -> None:
    """Draw a line a role: the median over its matrices at each step.

    Args:
        axes: the panel.
        trajectory: the run.
        metric: what is drawn.
        roles: with their families.
        relative: divide each line by its first value.
    """
    for family, role in roles:
        series = trajectory.series(metric, role, family=family)
        if not series:
            continue
        first = series[0][1] if relative else 1.0
        look = role_style(role)
        axes.plot(
            [step for step, _ in series],
            [value / first for _, value in series],
            color=look.colour,
            marker=look.marker if len(series) <= _MARKERS_UP_TO else "",
            linestyle=":" if role in _DRAWN_AS else "-",
            label=role,
        )


def role_style(role: AnyRole) -> RoleStyle:
    """Give colour and marker of a role, a product's too.

    Args:
        role: of matrices of a run.
    """
    return palette().roles[_DRAWN_AS.get(role) or stored_role(role)]


def run_name(run: str) -> str:
    """Give the name of a run: the last part of its path that is no pattern.

    Args:
        run: as it was given: a folder, a glob, a hub repository.
    """
    parts = [part for part in run.replace("\\", "/").split("/") if part not in ("", ".", "..") and "*" not in part]
    return plain(parts[-1] if parts else Path(run).resolve().name)


def step_axis(axes: Axes, trajectory: Trajectory) -> None:
    """Let an axis show all steps of a run, few of them labelled, 143000 as 143k.

    Args:
        axes: the panel.
        trajectory: the run.
    """
    first, last = trajectory.steps[0].step, trajectory.steps[-1].step
    margin = 0.04 * (last - first) or 1.0
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_xlabel("step")


def value_axis(axes: Axes) -> None:
    """Show a value that stays as a level line: an axis covers at least 2 % of it, in plain numbers.

    Args:
        axes: the panel, with its lines.
    """
    low, high = axes.get_ylim()
    least = _LEAST_SHARE * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def run_caption(trajectory: Trajectory, *notes: str) -> str:
    """Describe a run and its steps.

    Args:
        trajectory: the run.
        notes: what a figure adds.
    """
    steps = trajectory.steps
    covered = f"{len(steps)} checkpoints, step {steps[0].step} to {steps[-1].step}"
    text = f"{run_name(trajectory.run)}: {covered}, medians per role"
    left_out = f"{len(trajectory.dropped)} left out" if trajectory.dropped else ""
    return " · ".join(part for part in (text, left_out, *notes) if part)


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 and value % 100 == 0 else f"{value:g}"
