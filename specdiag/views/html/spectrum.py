"""The few numbers of one spectrum that are drawn: a histogram, the fit and the nulls."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.figures.axes import log_bins
from specdiag.views.figures.density import Curve, curve, densities, span_of
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
    """Prepare the drawing of one record's eigenvalues.

    Args:
        report: the report, with its eigenvalues.
        record: one of its rows.

    Returns:
        The numbers to draw; None where the record has no eigenvalues above zero.

    Raises:
        UsageError: the report was saved without eigenvalues.
        SourceError: the file of the eigenvalues cannot be read, or is not that of the report.
    """
    own_curve = curve(report, record, "", "")
    if own_curve is None or not own_curve.eigenvalues.size:
        return None
    low, high = span_of([own_curve], details=True)
    edges = log_bins([own_curve.eigenvalues], low, high)
    return Spectrum(
        low,
        high,
        tuple(map(_short, densities(own_curve.eigenvalues, edges, own_curve.n))),
        _fit(own_curve),
        _bulk(own_curve, low),
        None if record.rand_spectral_norm is None else _short(record.rand_spectral_norm**2),
        () if own_curve.randomized is None else tuple(map(_short, densities(own_curve.randomized, edges, own_curve.n))),
        own_curve.n - int((own_curve.eigenvalues >= low).sum()),
    )


def _fit(own_curve: Curve) -> tuple[Point, Point] | None:
    law = power_law(own_curve.record, float(own_curve.eigenvalues[-1]), own_curve.n, 2)
    if law is None:
        return None
    first, last = ((_short(x), _short(y)) for x, y in zip(*law, strict=True))
    return first, last


def _bulk(own_curve: Curve, low: float) -> tuple[Point, ...]:
    law, edge = bulk(own_curve.record), own_curve.record.mp_edge
    if law is None or edge is None or edge <= low:
        return ()
    (n, m), variance, share = law
    # Even steps of the angle lie dense at both edges of the law, where it is steep.
    angles = np.pi * (np.arange(_BULK_POINTS, 0, -1) - 0.5) / _BULK_POINTS
    at = variance * (n + m + 2 * (n * m) ** 0.5 * np.cos(angles))
    heights = share * mp_density(at, (n, m), variance)
    return tuple((_short(x), _short(y)) for x, y in zip(at, heights, strict=True) if x > low and y > 0)


def _short(value: float) -> float:
    """Round to three digits, which is finer than a pixel."""
    return float(f"{value:.3g}")
