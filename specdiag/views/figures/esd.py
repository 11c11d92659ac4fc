"""The spectrum itself: log-log densities of eigenvalues with the fit, its threshold, and what noise would show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import Panel, hide_inner, log_axis, log_bins, panels
from specdiag.views.figures.laws import bulk, power_law
from specdiag.views.figures.selection import by_place, choose, few_of_each, in_role_order
from specdiag.views.figures.style import (
    INK,
    NULL,
    REPORT_COLOURS,
    ROLE_STYLES,
    ReportFigure,
    legend,
    new_figure,
    plain,
    report_caption,
    report_names,
    shortened,
    styled,
)

_DETAILS_UP_TO = 2
"""Number of curves in a panel beyond which fits and nulls would hide the spectra."""
_LOWEST = 0.1
"""This share of the smallest eigenvalues is left out where they would stretch the axis by decades."""
_MEASURED_UP_TO = 30
"""Largest number of panels that are laid out by measuring their labels."""
_MARKERS_UP_TO = 12
"""Number of panels beyond which they are so small that markers would hide the curves."""


@dataclass(frozen=True)
class Curve:
    """A spectrum with its look."""

    record: ModuleRecord
    eigenvalues: NDArray[np.float64]
    """Ascending, positive."""
    n: int
    """Number of eigenvalues, zeros included, by which the density is normalised."""
    colour: str
    label: str
    marker: str = ""
    line: str = "-"
    randomized: NDArray[np.float64] | None = None
    """Eigenvalues of the matrix with its entries permuted, ascending, positive; None where these are not known."""


@styled
def esd(
    report: SpectralReport,
    *others: SpectralReport,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
) -> ReportFigure:
    """Draw densities of eigenvalues, log-log: a panel a layer with its roles, or a panel a module where it is alone.

    With several reports a panel holds one module of all of them; without a choice of modules that is the middle layer.
    Panels of one or two curves show the fitted power law above its threshold lambda_min, the Marchenko-Pastur bulk of
    that shape up to `mp_edge`, and the density of the matrix with its entries permuted where it was computed, its
    largest eigenvalue as a line.

    Args:
        report: from `analyze` or `load_report`, with its eigenvalues.
        others: reports of other checkpoints with modules of the same names.
        include: globs on names; only these.
        layers: only these.
        roles: only these.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in a report, or it was saved without eigenvalues.
    """
    chosen = _chosen(report, include, layers, roles, several=bool(others))
    chosen, notes = (chosen, []) if include else few_of_each(chosen)
    groups = _across((report, *others), chosen) if others else _within(report, chosen)
    if not groups:
        raise UsageError(f"{report.source}: no matrix that was asked for has a spectrum")
    detailed = max(map(len, groups.values())) <= _DETAILS_UP_TO
    if not detailed:
        notes.append(f"fits and nulls are drawn for up to {_DETAILS_UP_TO} curves a panel")
    curves = [c for group in groups.values() for c in group]
    span = span_of(curves, details=detailed)
    if any(values[0] < span[0] for values in _spectra(curves, details=detailed)):
        notes.append("the smallest eigenvalues lie to the left")
    columns, width, height, most = _sizes(len(groups))
    caption = report_caption(report, *others, notes=tuple(notes))
    figure = new_figure(width, height, "Density of eigenvalues", caption, fixed=len(groups) > _MEASURED_UP_TO)
    grid = panels(figure, len(groups), columns)
    hide_inner(grid)
    heights: list[float] = []
    for panel, (name, group) in zip(grid, groups.items(), strict=True):
        heights += draw(panel.axes, group, span, details=detailed, markers=len(grid) <= _MARKERS_UP_TO)
        panel.axes.set_title(name, fontsize=9 if most > 3 else 7.5)
    finish(grid, span, heights, most)
    legend(figure)
    return figure


def draw(
    axes: Axes, curves: Sequence[Curve], span: tuple[float, float], *, details: bool, markers: bool
) -> list[float]:
    """Draw the densities of some spectra over the same bins.

    Args:
        axes: an empty panel.
        curves: the spectra.
        span: the smallest and the largest eigenvalue of the axis.
        details: draw the fit and the nulls of each too.
        markers: draw the markers of the roles.

    Returns:
        The lowest and the highest density of each.
    """
    heights: list[float] = []
    edges = log_bins([c.eigenvalues for c in curves], *span)
    centres = np.sqrt(edges[1:] * edges[:-1])
    for c in curves:
        density = densities(c.eigenvalues, edges, c.n)
        shown = density > 0
        heights += [float(density[shown].min()), float(density.max())]
        if details and len(curves) == 1:
            axes.stairs(density, edges, fill=True, color=c.colour, alpha=0.45, label=c.label)
        else:
            axes.plot(centres[shown], density[shown], color=c.colour, linewidth=1.1, label=c.label,
                      linestyle=c.line,
                marker=c.marker if markers else "", markersize=3)  # fmt: skip
    for c in curves if details else ():
        ink = INK if len(curves) == 1 else c.colour
        _fit(axes, c, ink)
        _bulk(axes, c, ink)
        heights += _permuted(axes, c, edges, ink)
    return heights


def finish(grid: Sequence[Panel], span: tuple[float, float], heights: Sequence[float], most: int) -> None:
    """Give panels with densities the same logarithmic axes.

    Args:
        grid: the panels.
        span: the smallest and the largest eigenvalue.
        heights: lowest and highest densities of all curves.
        most: the largest number of ticks on an axis.
    """
    for panel in grid:
        log_axis(panel.axes.xaxis, *span, most)
        log_axis(panel.axes.yaxis, min(heights) / 1.8, max(heights) * 1.8, most)
        panel.axes.set_xlabel("eigenvalue" if panel.bottom else "")
        panel.axes.set_ylabel("density" if panel.left else "")


def curve(report: SpectralReport, record: ModuleRecord, colour: str, label: str, marker: str) -> Curve | None:
    """Prepare the spectrum of a record for drawing.

    Args:
        report: the report, with its eigenvalues.
        record: one of its rows.
        colour: of the line.
        label: for the legend.
        marker: matplotlib's, or empty.

    Returns:
        None where the record has no spectrum, or is zero everywhere.

    Raises:
        UsageError: the report was saved without eigenvalues.
    """
    if not record.spectral_norm:
        return None
    eigenvalues = report.eigenvalues(record.key)
    return Curve(
        record,
        eigenvalues[eigenvalues > 0],
        len(eigenvalues),
        colour,
        label,
        marker,
        ":" if record.cross_attention else "-",
        _randomized(report, record),
    )


def span_of(curves: Sequence[Curve], *, details: bool) -> tuple[float, float]:
    """Find the smallest and the largest eigenvalue to draw.

    The lowest tenth of a spectrum is left out where it reaches three decades or more below the largest eigenvalue.

    Args:
        curves: the spectra.
        details: count the spectra of permuted matrices too.

    Returns:
        Both, with a margin around them.
    """
    spectra = _spectra(curves, details=details)
    high = max(float(values[-1]) for values in spectra)
    lows = [float(np.quantile(v, _LOWEST)) if v[0] < 1e-3 * high else float(v[0]) for v in spectra]
    return min(lows) * 0.9, high * 1.15


def densities(eigenvalues: NDArray[np.float64], edges: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Compute the density of n eigenvalues, some of which may lie outside of the bins.

    Args:
        eigenvalues: those above zero, ascending.
        edges: of the bins.
        n: number of all eigenvalues.

    Returns:
        One value a bin.
    """
    return np.histogram(eigenvalues, edges)[0] / (np.diff(edges) * n)


def exponents(record: ModuleRecord) -> str:
    """Write alpha with its null, or the status where there is no alpha."""
    if record.alpha is None:
        return record.status
    return f"alpha {record.alpha:.2f}" + ("" if record.alpha_null is None else f" (null {record.alpha_null:.2f})")


def _spectra(curves: Sequence[Curve], *, details: bool) -> list[NDArray[np.float64]]:
    """Choose what is drawn: with details the permuted matrices too."""
    return [v for c in curves for v in (c.eigenvalues, c.randomized if details else None) if v is not None]


def _randomized(report: SpectralReport, record: ModuleRecord) -> NDArray[np.float64] | None:
    if record.rand_spectral_norm is None:
        return None
    try:
        eigenvalues = report.eigenvalues(record.key, randomized=True)
    except UsageError:  # saved when only the largest was kept
        return None
    return eigenvalues[eigenvalues > 0]


def _fit(axes: Axes, c: Curve, ink: str) -> None:
    law = power_law(c.record, float(c.eigenvalues[-1]), c.n, 40)
    if law is None or c.record.xmin is None:
        return
    axes.plot(*law, color=ink, linewidth=1.8, label="fitted power law")
    axes.axvline(c.record.xmin, color=ink, linestyle=":", linewidth=1.1, label="lambda_min of the fit")


def _bulk(axes: Axes, c: Curve, ink: str) -> None:
    law, edge = bulk(c.record), c.record.mp_edge
    if law is None or edge is None:
        return
    (n, m), variance, share = law
    lowest = max(variance * (m**0.5 - n**0.5) ** 2, float(c.eigenvalues[0]))
    x = np.geomspace(lowest * 1.0001, edge * 0.9999, 200)
    axes.plot(x, share * mp_density(x, (n, m), variance), color=ink, linestyle=(0, (5, 2)), linewidth=1.1,
              label="Marchenko-Pastur bulk")  # fmt: skip


def _permuted(axes: Axes, c: Curve, edges: NDArray[np.float64], ink: str) -> list[float]:
    """Draw the density of the permuted matrix, and a line at its largest eigenvalue."""
    heights: list[float] = []
    if c.randomized is not None:
        density = densities(c.randomized, edges, c.n)
        heights = [float(density[density > 0].min()), float(density.max())]
        axes.stairs(density, edges, color=NULL if ink == INK else ink, linewidth=1.1, label="entries permuted")
    if c.record.rand_spectral_norm is not None:
        axes.axvline(c.record.rand_spectral_norm**2, color=ink, linestyle="-.", linewidth=1.1,
                     label="largest eigenvalue,\nentries permuted")  # fmt: skip
    return heights


def _chosen(
    report: SpectralReport,
    include: str | Sequence[str],
    layers: int | Sequence[int],
    roles: str | Sequence[str],
    *,
    several: bool,
) -> list[ModuleRecord]:
    """Choose the records: those requested; else those in layers, and of several reports the middle layer."""
    chosen = choose(report, include, layers, roles)
    is_selected = include or roles or layers != ()
    numbers = sorted({r.layer for r in chosen if r.layer is not None})
    if is_selected or not numbers:
        return chosen
    return [r for r in chosen if r.layer is not None and (not several or r.layer == numbers[len(numbers) // 2])]


def _within(report: SpectralReport, records: Sequence[ModuleRecord]) -> dict[str, list[Curve]]:
    """Group curves into a panel for each layer; a matrix outside of the layers has its own."""
    members: dict[str, list[ModuleRecord]] = defaultdict(list)
    for r in in_role_order(records):
        members[_place(r)].append(r)
    parts = list(dict.fromkeys(r.component for r in records))
    ordered = sorted(records, key=lambda r: (r.layer is None, parts.index(r.component), r.layer or 0))
    order = dict.fromkeys(_place(r) for r in ordered)
    alone = all(len(group) == 1 for group in members.values())
    groups: dict[str, list[Curve]] = {}
    for place in order:
        single_panel = len(members) == 1
        looks = [(r, ROLE_STYLES[r.role]) for r in members[place]]
        curves = [c for r, look in looks if (c := curve(report, r, look.colour, _label(r, single_panel), look.marker))]
        if curves:
            first = curves[0].record
            name = first.key if single_panel and alone else place
            groups[_title(name, f"\n{exponents(first)}" if alone and not single_panel else "", len(order))] = curves
    return groups


def _across(reports: Sequence[SpectralReport], records: Sequence[ModuleRecord]) -> dict[str, list[Curve]]:
    """Group curves into a panel for each module, with a curve for each report."""
    first, rows = by_place(reports[0]), [by_place(report) for report in reports]
    places = {r.key: place for place, r in first.items()}
    lacking = next((i for i, row in enumerate(rows) if not any(places[r.key] in row for r in records)), None)
    if lacking is not None:
        wanted = ", ".join(f"{_place(r)} {role_label(r)}" for r in records[:3])
        raise UsageError(
            f"{reports[lacking].source} has no counterpart of {wanted}, nor of any other that was asked for"
        )
    names, titles = report_names(reports), set[str]()
    groups: dict[str, list[Curve]] = {}
    for r in in_role_order(records):
        counterparts = [(i, row[places[r.key]]) for i, row in enumerate(rows) if places[r.key] in row]
        curves = [
            c
            for i, own in counterparts
            if (c := curve(reports[i], own, REPORT_COLOURS[i % 6], names[i], "os^vDP"[i % 6]))
        ]
        if curves:
            alphas = " / ".join("none" if c.record.alpha is None else f"{c.record.alpha:.2f}" for c in curves)
            name = r.key if len(records) == 1 or r.layer is None else f"{_place(r)} {role_label(r)}"
            groups[_title(name if name not in titles else r.key, f"\nalpha {alphas}", len(records))] = curves
            titles.add(name)
    return groups


def _place(r: ModuleRecord) -> str:
    part = "" if r.component is None else f"{r.component} "
    return r.key if r.layer is None else f"{part}layer {r.layer}"


def _label(r: ModuleRecord, detailed: bool) -> str:
    return f"{role_label(r)} {r.rows}x{r.cols}, {exponents(r)}" if detailed else role_label(r)


def _title(name: str, more: str, n_panels: int) -> str:
    _, width, _, _ = _sizes(n_panels)
    columns = _sizes(n_panels)[0]
    return plain(shortened(name, int((width - 2) / columns * 13))) + more


def _sizes(n: int) -> tuple[int, float, float, int]:
    """Compute columns, width and height in inches, and how many ticks an axis has room for."""
    if n == 1:
        return 1, 8.6, 4.4, 6
    columns = n if n <= 3 else 4 if n <= 12 else 6 if n <= 30 else 8
    width, height = (3.4, 2.6) if n <= 4 else (2.5, 2.0) if n <= 12 else (1.7, 1.5) if n <= 30 else (1.45, 1.25)
    return columns, width * columns + 3.0, height * -(-n // columns) + 1.0, 5 if n <= 4 else 4 if n <= 12 else 3
