"""The curve of a spectrum: its density of eigenvalues with the fit, its threshold, and what noise would show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.figures.axes import Panel, log_axis, log_bins
from specdiag.views.figures.laws import bulk, power_law
from specdiag.views.figures.palette import palette

_LOWEST = 0.1
"""This share of the smallest eigenvalues is left out where they would stretch the axis by decades."""
_BELOW_TEXT = 0.87
"""Share of the height where vertical lines end, below the exponents."""


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
    line: str = "-"
    randomized: NDArray[np.float64] | None = None
    """Eigenvalues of the matrix with its entries permuted, ascending, positive; None where these are not known."""


def curve(report: SpectralReport, record: ModuleRecord, colour: str, label: str, line: str = "-") -> Curve | None:
    """Prepare the spectrum of a record for drawing.

    Args:
        report: the report, with its eigenvalues.
        record: one of its rows.
        colour: of the line.
        label: for the legend.
        line: matplotlib's style, where there are several in a panel.

    Returns:
        None where the record has no spectrum, or is zero everywhere.

    Raises:
        UsageError: the report was saved without eigenvalues.
    """
    if not record.spectral_norm:
        return None
    eigenvalues = report.eigenvalues(record.key)
    positive = eigenvalues[eigenvalues > 0]
    return Curve(record, positive, len(eigenvalues), colour, label, line, _randomized(report, record))


def draw(axes: Axes, curves: Sequence[Curve], span: tuple[float, float], *, details: bool) -> list[float]:
    """Draw the densities of some spectra over the same bins.

    Args:
        axes: an empty panel.
        curves: the spectra.
        span: the smallest and the largest eigenvalue of the axis.
        details: draw the fit and the null of each too, and of a spectrum that is alone also the threshold of the fit
            and the matrix with its entries permuted.

    Returns:
        The lowest and the highest density of each.
    """
    heights: list[float] = []
    edges = log_bins([c.eigenvalues for c in curves], *span)
    alone = len(curves) == 1
    for c in curves:
        density = densities(c.eigenvalues, edges, c.n)
        heights += [float(density[density > 0].min()), float(density.max())]
        if alone:
            axes.stairs(density, edges, fill=True, color=c.colour, alpha=0.45, label=c.label)
        else:
            axes.stairs(density, edges, color=c.colour, linewidth=1.3, linestyle=c.line, label=c.label)
    for c in curves if details else ():
        heights += _fit(axes, c, palette().ink if alone else c.colour)
        _bulk(axes, c, palette().null if alone else c.colour)
    if details and alone:
        _threshold(axes, curves[0].record)
        heights += _permuted(axes, curves[0], edges)
    return heights


def finish(grid: Sequence[Panel], spans: Sequence[tuple[float, float]], heights: Sequence[float], most: int) -> None:
    """Give panels with densities logarithmic axes, the same densities in all.

    Args:
        grid: the panels.
        spans: the smallest and the largest eigenvalue of each panel.
        heights: lowest and highest densities of all curves.
        most: the largest number of ticks on an axis.
    """
    for panel, span in zip(grid, spans, strict=True):
        log_axis(panel.axes.xaxis, *span, most)
        log_axis(panel.axes.yaxis, min(heights) / 1.8, max(heights) * 1.8, most)
        panel.axes.set_xlabel("eigenvalue" if panel.bottom else "")
        panel.axes.set_ylabel("density" if panel.left else "")


def span_of(curves: Sequence[Curve], *, details: bool) -> tuple[float, float]:
    """Find the smallest and the largest eigenvalue to draw.

    The lowest tenth of a spectrum is left out where it reaches three decades or more below the largest eigenvalue.

    Args:
        curves: the spectra.
        details: count the spectra of permuted matrices too.

    Returns:
        Both, with a margin around them.
    """
    low, high = span(spectra(curves, details=details))
    edges = [c.record.mp_edge or 0.0 for c in curves if details and bulk(c.record) is not None]
    return low * 0.9, max(high, *edges, 0.0) * 1.15


def span(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Find the smallest and the largest value to draw of some spectra, without the margin.

    Args:
        values: ascending, positive.
    """
    high = max(float(v[-1]) for v in values)
    lows = [float(np.quantile(v, _LOWEST)) if v[0] < 1e-3 * high else float(v[0]) for v in values]
    return min(lows), high


def spectra(curves: Sequence[Curve], *, details: bool) -> list[NDArray[np.float64]]:
    """List the eigenvalues that are drawn: with details those of the permuted matrices too.

    Args:
        curves: the spectra.
        details: whether the nulls are drawn.
    """
    return [v for c in curves for v in (c.eigenvalues, c.randomized if details else None) if v is not None]


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


def _randomized(report: SpectralReport, record: ModuleRecord) -> NDArray[np.float64] | None:
    if record.rand_spectral_norm is None:
        return None
    try:
        eigenvalues = report.eigenvalues(record.key, randomized=True)
    except UsageError:  # saved when only the largest was kept
        return None
    return eigenvalues[eigenvalues > 0]


def _fit(axes: Axes, c: Curve, ink: str) -> list[float]:
    """Draw the fitted law, and give its highest density."""
    law = power_law(c.record, float(c.eigenvalues[-1]), c.n, 40)
    if law is None:
        return []
    axes.plot(*law, color=ink, linewidth=1.8, label="fitted power law")
    return [float(law[1].max())]


def _threshold(axes: Axes, record: ModuleRecord) -> None:
    if power_law(record, 1.0, 1, 2) is not None and record.xmin is not None:
        axes.axvline(record.xmin, 0, _BELOW_TEXT, color=palette().ink, linestyle=":", linewidth=1.1,
                     label="lambda_min of the fit")  # fmt: skip


def _bulk(axes: Axes, c: Curve, ink: str) -> None:
    law, edge = bulk(c.record), c.record.mp_edge
    if law is None or edge is None:
        return
    (n, m), variance, share = law
    lowest = max(variance * (m**0.5 - n**0.5) ** 2, float(c.eigenvalues[0]))
    x = np.geomspace(lowest * 1.0001, edge * 0.9999, 200)
    axes.plot(x, share * mp_density(x, (n, m), variance), color=ink, linestyle=(0, (5, 2)), linewidth=1.4,
              label="random matrices")  # fmt: skip


def _permuted(axes: Axes, c: Curve, edges: NDArray[np.float64]) -> list[float]:
    """Draw the density of the permuted matrix, and a line at its largest eigenvalue."""
    heights, ink = list[float](), palette().null
    if c.randomized is not None:
        density = densities(c.randomized, edges, c.n)
        heights = [float(density[density > 0].min()), float(density.max())]
        axes.stairs(density, edges, color=ink, linewidth=1.1, label="entries permuted")
    if c.record.rand_spectral_norm is not None:
        axes.axvline(c.record.rand_spectral_norm**2, 0, _BELOW_TEXT, color=ink, linestyle="-.", linewidth=1.1,
                     label="largest eigenvalue,\nentries permuted")  # fmt: skip
    return heights
