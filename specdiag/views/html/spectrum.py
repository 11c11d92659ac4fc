"""The few numbers of one spectrum that are drawn: a histogram, the fit and the nulls."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.figures.axes import log_bins
from specdiag.views.figures.esd import Curve, curve, densities, span_of
from specdiag.views.figures.laws import bulk, power_law

Point = tuple[float, float]

_BULK_POINTS = 40


class Spectrum(NamedTuple):
    """Numbers that draw one ESD: the density in equal bins of log(eigenvalue), some 60 numbers for thousands."""

    low: float
    """Edges of the first and the last bin."""
    high: float
    density: tuple[float, ...]
    fit: tuple[Point, Point] | None
    """Ends of the fitted power law, from its threshold to the largest eigenvalue: a straight line, log-log."""
    bulk: tuple[Point, ...]
    """The Marchenko-Pastur density of this shape."""
    permuted: float | None
    """Largest eigenvalue of the matrix with its entries permuted."""
    randomized: tuple[float, ...]
    """Density of the matrix with its entries permuted, in the same bins; empty where it is not known."""
    n_left: int
    """Eigenvalues below `low`, zeros included."""


def spectrum(report: SpectralReport, record: ModuleRecord) -> Spectrum | None:
    """Prepare the drawing of one record's eigenvalues; None where there are none.

    Raises:
        UsageError: the report was saved without eigenvalues.
    """
    curve_of = curve(report, record, "", "", "")
    if curve_of is None or not curve_of.eigenvalues.size:
        return None
    low, high = span_of([curve_of], details=True)
    edges = log_bins([curve_of.eigenvalues], low, high)
    return Spectrum(
        low,
        high,
        tuple(map(_short, densities(curve_of.eigenvalues, edges, curve_of.n))),
        _fit(curve_of),
        _bulk(curve_of, low),
        None if record.rand_spectral_norm is None else _short(record.rand_spectral_norm**2),
        () if curve_of.randomized is None else tuple(map(_short, densities(curve_of.randomized, edges, curve_of.n))),
        curve_of.n - int((curve_of.eigenvalues >= low).sum()),
    )


def _fit(curve_of: Curve) -> tuple[Point, Point] | None:
    law = power_law(curve_of.record, float(curve_of.eigenvalues[-1]), curve_of.n, 2)
    if law is None:
        return None
    first, last = ((_short(x), _short(y)) for x, y in zip(*law, strict=True))
    return first, last


def _bulk(curve_of: Curve, low: float) -> tuple[Point, ...]:
    law, edge = bulk(curve_of.record), curve_of.record.mp_edge
    if law is None or edge is None or edge <= low:
        return ()
    (n, m), variance = law
    # Even steps of the angle lie dense at both edges of the law, where it is steep.
    angles = np.pi * (np.arange(_BULK_POINTS, 0, -1) - 0.5) / _BULK_POINTS
    at = variance * (n + m + 2 * (n * m) ** 0.5 * np.cos(angles))
    heights = mp_density(at, *law)
    return tuple((_short(x), _short(y)) for x, y in zip(at, heights, strict=True) if x > low and y > 0)


def _short(value: float) -> float:
    """Three digits: more than a pixel shows."""
    return float(f"{value:.3g}")
