"""Every spectrum of a report: a panel a role, a ridge a layer, each relative to the largest eigenvalue of noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord, stored_role
from specdiag.report import SpectralReport
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import hide_inner, layer_axis, log_axis, log_bins, panels
from specdiag.views.figures.density import span
from specdiag.views.figures.palette import palette
from specdiag.views.figures.selection import in_role_order, value
from specdiag.views.figures.style import ReportFigure, new_figure, plain, report_caption, shortened

Spectra = Sequence[NDArray[np.float64]]
_OUTSIDE = "outside"
"""Panel of the matrices outside of the layers."""
_OVERLAP = 2.4
"""Height of the highest ridge, in distances between ridges."""
_ROUNDING = 1e-9
_MOST_RIDGES = 32
"""Ridges of a panel that the eye tells apart: neighbouring layers of a deeper model share one."""


def ridges(report: SpectralReport, records: Sequence[ModuleRecord]) -> ReportFigure:
    """Draw the density of ln(eigenvalue) of each layer as a ridge, over the largest eigenvalue of noise.

    Heights are square roots, so that the few eigenvalues of a tail can be seen. Where a role has several matrices in a
    layer (experts), the ridge is their mean density.

    Args:
        report: the report, with its eigenvalues.
        records: those to draw.

    Returns:
        A matplotlib figure.

    Raises:
        UsageError: none has a spectrum, or the report was saved without eigenvalues.
    """
    groups: dict[str, list[ModuleRecord]] = defaultdict(list)
    for r in in_role_order(records):
        if r.spectral_norm and r.mp_edge:
            groups[_panel(r)].append(r)
    if not groups:
        raise UsageError(f"{report.source}: no matrix that was asked for has a spectrum beside noise")
    relative = {r.key: _relative(report, r) for group in groups.values() for r in group}
    low, high = span(list(relative.values()))
    edges = log_bins(list(relative.values()), low, high)
    edges[-1] *= 1 + _ROUNDING  # the largest eigenvalue lies below it
    edges = np.append(edges, edges[-1] ** 2 / edges[-2])  # an empty bin, to which ridges come down
    columns = min(4, len(groups)) if len(groups) not in (5, 6) else 3
    rows, n_layers = -(-len(groups) // columns), len({r.layer for group in groups.values() for r in group})
    height = float(np.clip(0.9 + 0.16 * min(n_layers, _MOST_RIDGES), 1.6, 4.2)) * rows + 1.1
    title = "Eigenvalues by layer and role: right of the line lies what random matrices do not have"
    figure = new_figure(
        2.6 * columns + 0.8, height, title, report_caption(report, notes=_notes(records, groups, n_layers))
    )
    grid = panels(figure, len(groups), columns)
    hide_inner(grid)
    depths = [{r.layer for r in group} for group in groups.values()]
    size = -(-n_layers // _MOST_RIDGES)
    for panel, (name, group), depth in zip(grid, groups.items(), depths, strict=True):
        _ridges(panel.axes, group, relative, edges, size)
        panel.axes.set_title(plain(f"{name}{_exponents(group)}"), fontsize=9)
        log_axis(panel.axes.xaxis, float(edges[0]), float(edges[-1]), 4)
        panel.axes.set_xlabel("eigenvalue / largest of noise" if panel.bottom else "")
        panel.axes.yaxis.set_visible(name != _OUTSIDE and (panel.left or depth != depths[0]))
        panel.axes.set_ylabel("layer" if panel.left and name != _OUTSIDE else "")
    return figure


def _ridges(
    axes: Axes,
    group: Sequence[ModuleRecord],
    relative: dict[str, NDArray[np.float64]],
    edges: NDArray[np.float64],
    size: int,
) -> None:
    by_layer: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for i, r in enumerate(group):
        by_layer[i if r.layer is None else r.layer // size * size].append(
            _heights(relative[r.key], edges, r.n_eigenvalues)
        )
    heights = {layer: np.mean(members, axis=0) for layer, members in sorted(by_layer.items())}
    distance = (max(heights) - min(heights)) / max(1, len(heights) - 1) or 1.0
    unit = _OVERLAP * distance / max(float(h.max()) for h in heights.values())
    centres, outside = np.sqrt(edges[1:] * edges[:-1]), group[0].layer is None
    for depth, (layer, h) in enumerate(heights.items()):
        colour = palette().roles[stored_role(group[depth if outside else 0].role)].colour
        axes.fill_between(centres, layer - unit * h, layer, color=colour, alpha=0.75, linewidth=0, zorder=2 + depth)
        axes.plot(centres, layer - unit * h, color=palette().paper, linewidth=0.6, zorder=2.5 + depth)
    axes.axvline(1, color=palette().ink, linewidth=1, linestyle=(0, (5, 2)), zorder=3 + len(heights))
    axes.set_ylim(max(heights) + 0.3 * distance, min(heights) - (_OVERLAP + 0.2) * distance)
    if outside:
        halo = [Stroke(linewidth=2.5, foreground=palette().paper), Normal()]
        for y, name in enumerate(_names(group)):
            axes.text(0.02, y, plain(name), fontsize=7.5, va="bottom", transform=axes.get_yaxis_transform(),
                      zorder=4 + len(heights), path_effects=halo)  # fmt: skip
    else:
        layer_axis(axes.yaxis, heights, 10, label=False)


def _panel(r: ModuleRecord) -> str:
    return _OUTSIDE if r.layer is None else role_label(r) if r.component is None else f"{r.component} {role_label(r)}"


def _heights(values: NDArray[np.float64], edges: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    return np.sqrt(np.histogram(values, edges)[0] / n)


def _relative(report: SpectralReport, record: ModuleRecord) -> NDArray[np.float64]:
    eigenvalues = report.eigenvalues(record.key)
    return eigenvalues[eigenvalues > 0] / (record.mp_edge or 1.0)


def _names(group: Sequence[ModuleRecord]) -> list[str]:
    """Name matrices by their roles, and where several share a role by as much of the end of the name as tells them."""
    labels = [role_label(r) for r in group]
    return [
        label if labels.count(label) == 1 else shortened(_end(r, group), 24)
        for label, r in zip(labels, group, strict=True)
    ]


def _end(record: ModuleRecord, group: Sequence[ModuleRecord]) -> str:
    """Give the shortest end of a name that no other name has."""
    name, *others = (r.key.removesuffix(".weight").split(".") for r in (record, *(r for r in group if r is not record)))
    depth = next((n for n in range(1, len(name)) if all(other[-n:] != name[-n:] for other in others)), len(name))
    return ".".join(name[-depth:])


def _exponents(group: Sequence[ModuleRecord]) -> str:
    """Write the range of square_alpha, which may be compared across panels, or else of alpha."""
    metric = "square_alpha" if any(r.square_alpha is not None for r in group) else "alpha"
    values = [v for r in group if (v := value(r, metric)) is not None]
    if not values:
        return ""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f": {metric} {low}" if low == high else f": {metric} {low} to {high}"


def _notes(records: Sequence[ModuleRecord], groups: dict[str, list[ModuleRecord]], n_layers: int) -> tuple[str, ...]:
    drawn = [r for group in groups.values() for r in group]
    notes = ["height: square root of the share of eigenvalues"]
    if n_layers > _MOST_RIDGES:
        notes.append(f"a ridge is the mean of {-(-n_layers // _MOST_RIDGES)} layers")
    elif any(len(group) > len({r.layer for r in group}) for group in groups.values() if group[0].layer is not None):
        notes.append("a ridge of several matrices is their mean")
    if len(drawn) < len(records):
        notes.append(f"{len(records) - len(drawn)} without a spectrum are left out")
    return tuple(notes)
