"""A metric over the steps of a run, a panel a family, beside what noise scores, with the training loss below."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes

from specdiag.records import FAMILIES, AnyRole, Family
from specdiag.text import checks
from specdiag.text.words import words
from specdiag.trajectories.records import TRACKED, Trajectory
from specdiag.trajectories.wording import tails
from specdiag.views.figures.direct import name_lines
from specdiag.views.figures.palette import palette
from specdiag.views.figures.runs import (
    Roles,
    role_lines,
    role_style,
    roles_with,
    run_caption,
    run_name,
    step_axis,
    value_axis,
)
from specdiag.views.figures.style import (
    FAMILY_TITLES,
    ReportFigure,
    new_figure,
    styled,
)

_RHO = {"alpha": "rho", "square_alpha": "square_rho"}
"""The column rho of each exponent: the exponent of noise is 1 + (value - 1)/rho."""
_ACROSS_SHAPES = ("square_alpha", "square_rho", "rho")
"""Metrics that may be compared across shapes: their panels share an axis."""


@styled
def trajectory(trajectory: Trajectory, *, metric: str | None = None, roles: str | Sequence[str] = ()) -> ReportFigure:
    """Draw medians per role over the steps, those of random matrices dashed; below, loss and balance.

    Products of the function (qk, ov, du) have dotted lines where the run has them and they have the metric.

    Args:
        trajectory: from `specdiag.trajectory` or `load_trajectory`.
        metric: a tracked metric; None for square_alpha, which may be compared across roles, or else alpha.
        roles: only these.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in the trajectory.
    """
    checks.instance("trajectory", trajectory, Trajectory, "from trajectory or load_trajectory")
    square = any(row.metric == "square_alpha" for row in trajectory.rows)
    metric = ("square_alpha" if square else "alpha") if metric is None else metric
    checks.one_of("metric", metric, TRACKED)
    chosen = roles_with(trajectory, (metric,), roles, products=True)
    families: list[Family] = [family for family in FAMILIES if any(f == family for f, _ in chosen)]
    below = [name for name in ("loss", "balance_sd") if trajectory.series(name)]
    width = max(3.3 * max(len(families), len(below)) + 1.4, 6.4)
    said = tails(trajectory) if metric in ("square_alpha", "alpha") and not roles else ""
    title = f"{run_name(trajectory.run)}: {said or words(metric) + ' over the steps' + _direction(metric)}"
    figure = new_figure(width, 3.3 + (2.2 if below else 0) + 0.9, title, run_caption(trajectory))
    parts = figure.subfigures(2 if below else 1, 1, squeeze=False, height_ratios=[3.3, 2.2] if below else None)[:, 0]
    upper = parts[0].subplots(1, len(families), squeeze=False, sharey=metric in _ACROSS_SHAPES)[0]
    for axes, family in zip(upper, families, strict=True):
        members: list[tuple[Family, AnyRole]] = [(f, role) for f, role in chosen if f == family]
        role_lines(axes, trajectory, metric, members)
        _nulls(axes, trajectory, metric, members)
        axes.set_title(FAMILY_TITLES[family])
        step_axis(axes, trajectory)
        value_axis(axes)
    upper[0].set_ylabel(f"{words(metric)}{_direction(metric)}")
    lower = parts[1].subplots(1, len(below), squeeze=False)[0] if below else ()
    for axes, name in zip(lower, below, strict=True):
        _of_the_run(axes, trajectory, name)
    name_lines(figure, upper)
    return figure


def _direction(metric: str) -> str:
    return " (lower: heavier tails)" if metric in _RHO or metric in _ACROSS_SHAPES else ""


def _nulls(axes: Axes, trajectory: Trajectory, metric: str, roles: Roles) -> None:
    if metric not in _RHO:
        return
    levels: dict[float, list[AnyRole]] = {}
    for family, role in roles:
        values, rhos = (dict(trajectory.series(m, role, family=family)) for m in (metric, _RHO[metric]))
        nulls = [1 + (value - 1) / rhos[step] for step, value in values.items() if rhos.get(step)]
        if nulls:
            levels.setdefault(round(median(nulls), 2), []).append(role)
    for level, sharing in levels.items():
        colour = palette().null if len(sharing) > 1 or len(levels) == 1 else role_style(sharing[0]).colour
        label = f"random {level:.2f}" + (f": {' '.join(sharing)}" if len(levels) > 1 else "")
        axes.axhline(level, color=colour, linestyle=(0, (5, 2)), linewidth=1, label=label, zorder=0)


def _of_the_run(axes: Axes, trajectory: Trajectory, name: str) -> None:
    series = trajectory.series(name)
    axes.plot([step for step, _ in series], [value for _, value in series], color=palette().ink, marker=".")
    evaluated = trajectory.series("eval_loss") if name == "loss" else []
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), color=palette().ink, linestyle=":", marker=".")
    titles = {
        "loss": "training loss" + (" (dotted: evaluated)" if evaluated else ""),
        "balance_sd": "standard deviation of square_alpha",
    }
    axes.set_title(titles[name])
    step_axis(axes, trajectory)
