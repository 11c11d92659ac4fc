"""Norms and ranks over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.trajectories.records import Trajectory
from specdiag.views.figures.runs import role_lines, roles_with, run_caption, step_axis
from specdiag.views.figures.style import ReportFigure, legend, new_figure, styled

_PANELS = (
    ("frobenius_norm", "||W||_F over its first", True),
    ("spectral_norm", "sigma_max over its first", True),
    ("stable_rank", "stable rank", False),
)


@styled
def norms(found: Trajectory, *, roles: str | Sequence[str] = ()) -> ReportFigure:
    """Frobenius and spectral norm, each over its value at the first step, and the stable rank: a line a role.

    Args:
        found: what `trajectory` found.
        roles: only these.

    Raises:
        UsageError: nothing of the kind is in the trajectory.
    """
    chosen = roles_with(found, [metric for metric, _, _ in _PANELS], roles)
    figure = new_figure(12.4, 4.4, f"Norms and ranks over the steps of {found.run}", run_caption(found))
    for axes, (metric, title, relative) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        role_lines(axes, found, metric, chosen, relative=relative)
        axes.set_title(title)
        step_axis(axes, found)
    legend(figure)
    return figure
