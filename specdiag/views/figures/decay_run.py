"""The decays of a run over its steps: a panel a family, the median of a role and the range of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from specdiag.records import FAMILIES, ROLES, Family, Role
from specdiag.text import checks
from specdiag.trajectories.decay_log import DecayLog, Series
from specdiag.views.figures.direct import name_lines
from specdiag.views.figures.palette import palette
from specdiag.views.figures.runs import run_name
from specdiag.views.figures.style import FAMILY_TITLES, ReportFigure, new_figure, styled


@styled
def decay_run(log: DecayLog) -> ReportFigure:
    """Draw the weight decay that the optimizer read, from change to change.

    Args:
        log: from `load_decay_log`.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.
    """
    checks.instance("log", log, DecayLog, "from load_decay_log")
    families: list[Family] = [family for family in FAMILIES if any(f == family for f, _ in log.series)]
    caption = f"{log.run}: to step {log.last}, medians per role and range, roles of {log.checkpoint}"
    figure = new_figure(3.6 * len(families) + 1.4, 4.2, f"{run_name(log.run)}: weight decay over the steps", caption)
    panels = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
    for axes, family in zip(panels, families, strict=True):
        own: list[Role] = [role for role in ROLES if (family, role) in log.series]
        for role in own:
            members, look = log.series[family, role], palette().roles[role]
            steps = sorted({step for series in members for step, _ in series} | {log.last})
            rows = [[_at(series, step) for series in members] for step in steps]
            values = [[value for value in row if value is not None] for row in rows]
            axes.step(steps, [median(row) for row in values], where="post", color=look.colour, label=role)
            if len(members) > 1:
                low, high = [min(row) for row in values], [max(row) for row in values]
                axes.fill_between(steps, low, high, step="post", color=look.colour, alpha=0.15, linewidth=0)
        axes.set_title(FAMILY_TITLES[family])
        axes.set_xlabel("step")
    panels[0].set_ylabel("weight decay")
    name_lines(figure, panels)
    return figure


def _at(series: Series, step: int) -> float | None:
    """Give the decay at a step: the last change at or before it; None before the first."""
    return _last([value for when, value in series if when <= step])


def _last(values: Sequence[float]) -> float | None:
    return values[-1] if values else None
