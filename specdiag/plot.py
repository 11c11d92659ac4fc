"""Figures of reports and plans: functions that return a matplotlib figure and show nothing.

>>> figure = specdiag.plot.alpha(report)  # a notebook shows it
>>> specdiag.plot.save(figure, "alpha.svg").name
'alpha.svg'
"""

from __future__ import annotations

import os
from pathlib import Path

from matplotlib.figure import Figure

from specdiag.errors import UsageError
from specdiag.files import check_writable, write_atomically
from specdiag.text import checks
from specdiag.views.figures.alpha import alpha
from specdiag.views.figures.balance import balance
from specdiag.views.figures.decay import decay
from specdiag.views.figures.decay_run import decay_run
from specdiag.views.figures.esd import esd
from specdiag.views.figures.heads import heads
from specdiag.views.figures.heatmap import heatmap
from specdiag.views.figures.norms import norms
from specdiag.views.figures.norms_predicted import norms_predicted
from specdiag.views.figures.palette import style
from specdiag.views.figures.paper import paper
from specdiag.views.figures.scree import scree
from specdiag.views.figures.style import render
from specdiag.views.figures.trajectory import trajectory

__all__ = [
    "alpha", "balance", "check_target", "decay", "decay_run", "esd", "heads", "heatmap", "norms", "norms_predicted",
    "paper", "save", "scree", "style", "trajectory",
]  # fmt: skip

_MOST_DPI = 2400
_FORMATS = ("png", "svg", "pdf")


def save(figure: Figure, path: str | os.PathLike[str], *, dpi: float = 150, transparent: bool = False) -> Path:
    """Write a figure as the suffix says, whole or not at all; the same figure gives the same file.

    Args:
        figure: from a function of this module, or any other.
        path: a .png, .svg or .pdf file.
        dpi: dots per inch of a png.
        transparent: leave out the background, for a page of the colour that the figure's style is for.

    Raises:
        UsageError: another suffix, or a place that cannot be written.
    """
    checks.instance("figure", figure, Figure, "from a function of specdiag.plot or of matplotlib")
    dpi, transparent = checks.number("dpi", dpi, least=1, most=_MOST_DPI), checks.flag("transparent", transparent)
    path = checks.path("path", path)
    check_target(path)
    write_atomically(path, render(figure, path.suffix.lower()[1:], dpi, transparent=transparent))
    return path


def check_target(path: Path) -> None:
    """Raise UsageError now if no figure could be saved as `path` later."""
    path = checks.path("path", path)
    if path.suffix.lower()[1:] not in _FORMATS:
        raise UsageError(f"a figure is saved as .png, .svg or .pdf, not '{path.name}'")
    check_writable(path)
