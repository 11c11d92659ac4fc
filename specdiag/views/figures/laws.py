"""Laws drawn over a spectrum, as numbers: the fitted power law, and the bulk of noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specdiag.records import ModuleRecord
from specdiag.spectra.tail_rules import TAIL_RULES

Floats = NDArray[np.float64]


def power_law(record: ModuleRecord, largest: float, n: int, points: int) -> tuple[Floats, Floats] | None:
    """Eigenvalues and their densities on the fitted law, which has the tail's share of the mass.

    Args:
        record: what was fitted.
        largest: eigenvalue, where the law ends; it begins at its threshold.
        n: eigenvalues, of which the tail is a share.
        points: how many, even in the logarithm.

    Returns:
        None without a fit, and for FARMS, which fits other eigenvalues, those of windows.
    """
    r = record
    if r.alpha is None or r.xmin is None or r.k is None or TAIL_RULES[r.tail].windows is not None:
        return None
    x = np.geomspace(r.xmin, largest, points)
    return x, r.k / n * (r.alpha - 1) / r.xmin * (x / r.xmin) ** -r.alpha


def bulk(record: ModuleRecord) -> tuple[tuple[int, int], float] | None:
    """Shape and variance of the Marchenko-Pastur law that ends at `mp_edge`, the smaller side first."""
    if record.mp_edge is None:
        return None
    n, m = sorted((record.rows, record.cols))
    return (n, m), record.mp_edge / (n**0.5 + m**0.5) ** 2
