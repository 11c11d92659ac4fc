"""Norms and ranks over the steps of a run, with the norms that lr and decay predict where those are known."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes

from specdiag.dynamics.norm_log import NormLog
from specdiag.dynamics.run_check import Expected, expected_norms
from specdiag.text import checks
from specdiag.trajectories.records import Trajectory
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
from specdiag.views.figures.style import ReportFigure, new_figure, styled

_PANELS = (
    ("frobenius_norm", "Frobenius norm, first step = 1", True),
    ("spectral_norm", "largest singular value, first step = 1", True),
    ("stable_rank", "stable rank", False),
)
_COSINE = ("cos_update", "cosine of update and weights", False)


@styled
def norms(run: Trajectory | NormLog, *, roles: str | Sequence[str] = ()) -> ReportFigure:
    """Draw Frobenius and spectral norm over their values at the first step, and the stable rank: a line a role.

    The log of a norm watch adds the mean direction of updates and the norms that its lr and decay predict: the course
    dashed, the balance at the largest lr dotted, and the step before which no norm can be within 1 % of its balance.

    Args:
        run: from `trajectory`, or the log of a norm watch.
        roles: only these.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in the trajectory.
    """
    expected: list[Expected] = []
    between = 0
    if isinstance(run, NormLog):
        between, expected, trajectory = run.every, expected_norms(run), run.trajectory()
    else:
        checks.instance("run", run, Trajectory, "from trajectory or load_trajectory")
        trajectory = run
    panels = (*_PANELS, _COSINE) if any(row.metric == _COSINE[0] for row in trajectory.rows) else _PANELS
    chosen = roles_with(trajectory, [metric for metric, _, _ in panels], roles)
    step, notes = _earliest(trajectory, expected, chosen)
    caption = run_caption(trajectory, *notes)
    if between:
        n = len(trajectory.steps)
        caption = caption.replace(f": {n} checkpoints,", f": {n} steps, one in {between},", 1)
    title = f"{run_name(trajectory.run)}: {_how_far(trajectory, chosen) or 'norms and ranks over the steps'}"
    figure = new_figure(4.0 * len(panels) + 0.4, 4.4, title, caption)
    drawn = figure.subplots(1, len(panels))
    for axes, (metric, title, relative) in zip(drawn, panels, strict=True):
        role_lines(axes, trajectory, metric, chosen, relative=relative)
        axes.set_title(title)
        step_axis(axes, trajectory)
        value_axis(axes)
    if expected:
        _predictions(drawn[0], trajectory, expected, chosen)
        _from_then_on(drawn[0], step)
    if len(panels) > len(_PANELS):
        drawn[-1].axhline(0, color=palette().null, linewidth=0.8, zorder=0)
    name_lines(figure, drawn)
    return figure


def _how_far(trajectory: Trajectory, roles: Roles) -> str:
    """Say by how much the Frobenius norms changed, of the role that fell or grew least to the one that grew most."""
    series = {role: trajectory.series("frobenius_norm", role, family=family) for family, role in roles}
    changes = sorted((s[-1][1] / s[0][1] - 1, role) for role, s in series.items() if len(s) > 1 and s[0][1] > 0)
    if not changes:
        return ""
    n = trajectory.steps[-1].step - trajectory.steps[0].step
    if max(abs(change) for change, _ in changes) < 0.005:
        return f"norms changed by less than 0.5 % over {n:,} steps"
    ends = [f"{100 * change:+.0f} % ({role})" for change, role in (changes[0], changes[-1])]
    return f"norms changed by {' to '.join(dict.fromkeys(ends))} over {n:,} steps"


def _of_role(trajectory: Trajectory, expected: Sequence[Expected], family: str, role: str) -> list[Expected]:
    keys = {m.key for m in trajectory.modules if (m.form, m.family, m.role) == ("stored", family, role)}
    return [e for e in expected if e.module in keys]


def _predictions(axes: Axes, trajectory: Trajectory, expected: Sequence[Expected], roles: Roles) -> None:
    for family, role in roles:
        own = _of_role(trajectory, expected, family, role)
        measured = trajectory.series("frobenius_norm", role, family=family)
        if not own or not measured:
            continue
        first, colour = measured[0][1], role_style(role).colour
        values: dict[int, list[float]] = {}
        for one in own:
            for point in one.course:
                values.setdefault(point.step, []).append(point.value or 0.0)
        axes.plot(
            list(values), [median(v) / first for v in values.values()], color=colour, linestyle=(0, (4, 2)),
            linewidth=1, label="predicted",
        )  # fmt: skip
        balances = [one.balance for one in own if one.balance]
        if balances:
            axes.axhline(median(balances) / first, color=colour, linestyle=":", linewidth=0.8, zorder=0)


def _earliest(trajectory: Trajectory, expected: Sequence[Expected], roles: Roles) -> tuple[int | None, list[str]]:
    """Find the step before which no shown norm can be within 1 % of its balance, and write notes on it."""
    own = [e for family, role in roles for e in _of_role(trajectory, expected, family, role)]
    waits = [e.steps_to_balance for e in own if e.steps_to_balance]
    if not own:
        return None, []
    notes = ["dashed: predicted from lr, decay and optimizer; dotted: their balance at the largest lr"]
    if not waits:
        return None, notes
    step = trajectory.steps[0].step + min(waits)
    beyond = f"; the run ends before it, at {trajectory.steps[-1].step:,}" if step > trajectory.steps[-1].step else ""
    return step, [*notes, f"no norm that starts elsewhere is within 1 % of it before step {step:,}{beyond}"]


def _from_then_on(axes: Axes, step: int | None) -> None:
    if step is not None and step <= axes.get_xlim()[1]:
        axes.axvline(step, color=palette().faint, linestyle="-.", linewidth=1, label="balance possible", zorder=0)
