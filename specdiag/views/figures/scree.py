"""Singular values by rank: how fast each matrix falls off, layer by layer, beside noise of its shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.marchenko_pastur import mp_quantiles
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import hide_inner, layer_ticks, log_axis, panels
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import choose, few_of_each, in_role_order
from specdiag.views.figures.style import ReportFigure, new_figure, plain, report_caption, styled

_POINTS = 120
"""Number of points of a curve. More would not be seen, and 560 curves would make a large file."""
_FLOOR = 1e-4
"""Singular values below this share of the largest are not shown, nor most of the drop over the last twentieth."""


_NAME = 22
"""Characters that a panel has room for."""


@styled
def scree(
    report: SpectralReport,
    *,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
) -> ReportFigure:
    """Draw a panel a role: singular values over the largest by rank, a line a matrix, coloured by layer.

    Args:
        report: from `analyze` or `load_report`, with its eigenvalues.
        include: globs on names; only these.
        layers: only these.
        roles: only these.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in the report, or it was saved without eigenvalues.
    """
    chosen = choose(report, include, layers, roles)
    chosen, notes = (chosen, []) if include else few_of_each(chosen)
    groups = by_role(report, chosen)
    columns = min(4, len(groups)) if len(groups) not in (5, 6) else 3
    numbers = [r.layer for group in groups.values() for r in group if r.layer is not None]
    width, height = 2.7 * columns + 1.2, 2.3 * -(-len(groups) // columns) + 1.0
    caption = report_caption(report, notes=tuple(notes))
    title = "Singular values by rank, over the largest: below the dashed line is heavier-tailed than random"
    figure = new_figure(max(width, 5.5), height, title, caption)
    norm = Normalize(min(numbers, default=0), max(numbers, default=1))
    curves = {role: [relative_singular_values(report, r) for r in group] for role, group in groups.items()}
    longest = max(len(s) for group in curves.values() for s in group)
    smallest = max(_FLOOR, min(float(s[int(0.95 * len(s))]) for group in curves.values() for s in group))
    grid = panels(figure, len(groups), columns)
    hide_inner(grid)
    for panel, (role, group) in zip(grid, groups.items(), strict=True):
        for r, s in zip(group, curves[role], strict=True):
            colour = palette().ink if r.layer is None else palette().layers(norm(r.layer))
            draw_curve(panel.axes, s, logarithmic=True, color=colour, label=r.key)
        if group[0].family == "embedding" and group[0].layer is None and len(group) > 1:
            _name(panel.axes, [(_short(r.key), s) for r, s in zip(group, curves[role], strict=True)], smallest, longest)
        _noise(panel.axes, group)
        alone = _short(group[0].key) if len(group) == 1 and group[0].layer is None else ""
        panel.axes.set_title(f"{role}: {alone}" if alone and alone != role else role)
        log_axis(panel.axes.xaxis, 0.9, longest * 1.1, 4)
        log_axis(panel.axes.yaxis, smallest * 0.8, 1.2, 5)
        panel.axes.set_xlabel("rank" if panel.bottom else "")
        panel.axes.set_ylabel("singular value / largest" if panel.left else "")
    if len(set(numbers)) > 1:
        bar = figure.colorbar(
            ScalarMappable(norm, palette().layers), ax=[p.axes for p in grid], aspect=30, pad=0.02, label="layer"
        )
        bar.set_ticks(layer_ticks(numbers, 12))
        bar.ax.minorticks_off()
    return figure


def _short(key: str) -> str:
    """Give the last parts of a name that have room; empty where there is none."""
    parts = plain(key).removesuffix(".weight").split(".")
    return next((name for n in (2, 1) if len(name := ".".join(parts[-n:])) <= _NAME), "")


def _name(axes: Axes, curves: Sequence[tuple[str, NDArray[np.float64]]], smallest: float, longest: int) -> None:
    """Write names below the ends of curves, as far as these are seen, none over another."""
    line = np.log(1 / smallest) / 10
    ends = [(float(seen[-1]), len(seen), name) for name, s in curves if len(seen := s[s >= 2 * smallest])]
    above = np.inf
    for end, n, name in sorted(ends, reverse=True):
        above = min(np.log(end), above - line)
        to_right = n**2 < longest
        text = axes.annotate(
            name, (n, float(np.exp(above))), (3 if to_right else -3, -2), textcoords="offset points",
            ha="left" if to_right else "right", va="top", fontsize=7,
        )  # fmt: skip
        text.set_in_layout(False)


def by_role(report: SpectralReport, records: Sequence[ModuleRecord]) -> dict[str, list[ModuleRecord]]:
    """Group the matrices that have a spectrum by role.

    Args:
        report: the report, for messages.
        records: rows of it.

    Raises:
        UsageError: none has a spectrum.
    """
    groups: dict[str, list[ModuleRecord]] = defaultdict(list)
    for r in in_role_order(records):
        if r.spectral_norm:
            groups[role_label(r)].append(r)
    if not groups:
        raise UsageError(f"{report.source}: no matrix that was asked for has a spectrum")
    return groups


def relative_singular_values(report: SpectralReport, record: ModuleRecord) -> NDArray[np.float64]:
    """Compute sigma/sigma_max, descending; zeros are left out.

    Args:
        report: the report, with its eigenvalues.
        record: one of its rows.

    Raises:
        UsageError: the report was saved without eigenvalues.
    """
    eigenvalues = report.eigenvalues(record.key)
    positive = eigenvalues[eigenvalues > 0][::-1]
    return np.sqrt(positive / positive[0])


def draw_curve(
    axes: Axes,
    values: NDArray[np.float64],
    *,
    logarithmic: bool,
    color: str | tuple[float, float, float, float],
    label: str | None = None,
) -> None:
    """Draw values against rank, thinned evenly along the axis but for both ends.

    Args:
        axes: the panel.
        values: descending.
        logarithmic: thin them evenly in the logarithm of the rank.
        color: of the line.
        label: of the line.
    """
    at = _thinned(len(values), logarithmic=logarithmic)
    axes.plot(at, values[at - 1], linewidth=0.9, color=color, label=label)


def _noise(axes: Axes, records: Sequence[ModuleRecord]) -> None:
    """Draw the curve of a random matrix, for the shapes of the records that are long enough to have an exponent."""
    shapes = dict.fromkeys((r.n_slices, *sorted((r.rows, r.cols))) for r in records if r.status != "too_few")
    for slices, n, m in shapes:
        values = np.sqrt(mp_quantiles(n, n / m, slices)[::-1])
        at = _thinned(n * slices, logarithmic=True)
        axes.plot(at, values[at - 1] / values[0], linewidth=2, color=palette().ink, linestyle=(0, (4, 1.5)),
                  label="_noise", zorder=4)  # fmt: skip


def _thinned(n: int, *, logarithmic: bool) -> NDArray[np.int64]:
    """Choose ranks, evenly spaced along the axis but for both ends, which stay whole."""
    spaced = np.geomspace(1, n, _POINTS) if logarithmic else np.linspace(1, n, _POINTS)
    ranks = np.unique(np.concatenate([np.round(spaced), np.arange(1, min(n, 8)), np.arange(max(1, n - 6), n + 1)]))
    return ranks.astype(np.int64)
