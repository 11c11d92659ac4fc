"""The ladder of routes to a spectrum, from fast to exact: float32 Gram, float64 Gram, float64 singular values.

A caller climbs until the exponent is to be trusted (`trust`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from specdiag.spectra.eigenvalues import Spectrum, exact, pool, spectrum
from specdiag.spectra.float_types import FloatType, RawArray

Route = Literal["float32", "float64", "exact"]
ROUTES: tuple[Route, ...] = ("float32", "float64", "exact")


def solve(windows: Iterable[RawArray], storage: FloatType, route: Route) -> Spectrum:
    """Compute the spectrum of a matrix, or the pooled one of its windows, by one route.

    Args:
        windows: raw finite values of each window, shape [s, rows, cols]; the matrix itself is one window.
        storage: their type.
        route: `float32` and `float64` form the Gram matrix, `exact` does not.

    Raises:
        ComputationError: if a solver does not converge, or the eigenvalues do not sum to ||W||_F^2.
    """
    parts = [exact(w, storage) if route == "exact" else spectrum(w, storage, dtype=route) for w in windows]
    return parts[0] if len(parts) == 1 else pool(parts)


def more_exact(solved: Spectrum) -> Sequence[Route]:
    """List the routes above the one that a spectrum took; none is above singular values."""
    return () if solved.method == "svd" else ROUTES[ROUTES.index(solved.dtype) + 1 :]
