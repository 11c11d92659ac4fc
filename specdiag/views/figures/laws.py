"""Laws drawn over a spectrum, as numbers: the fitted power law, and the bulk of noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.records import ModuleRecord
from specdiag.spectra.tail_rules import TAIL_RULES

Floats = NDArray[np.float64]


def power_law(record: ModuleRecord, largest: float, n: int, points: int) -> tuple[Floats, Floats] | None:
    """Compute points of the fitted power law. It has the tail's share of the mass, and begins at the threshold.

    Args:
        record: the row with the fit.
        largest: eigenvalue at which the law ends.
        n: number of eigenvalues, of which the tail is a share.
        points: number of points, even in the logarithm.

    Returns:
        Eigenvalues and their densities. None without a fit, and for FARMS, which fits eigenvalues of windows.
    """
    r = record
    if r.alpha is None or r.xmin is None or r.k is None or TAIL_RULES[r.tail].windows is not None:
        return None
    x = np.geomspace(r.xmin, largest, points)
    return x, r.k / n * (r.alpha - 1) / r.xmin * (x / r.xmin) ** -r.alpha


class Bulk(NamedTuple):
    """The Marchenko-Pastur law of a matrix.

    Attributes:
        shape: (n, m) of its living part, the smaller side first.
        variance: of the entries.
        share: of the eigenvalues that are those of the living part.
    """

    shape: tuple[int, int]
    variance: float
    share: float


def bulk(record: ModuleRecord) -> Bulk | None:
    """Find the Marchenko-Pastur law that ends at `mp_edge`.

    Args:
        record: the row of a matrix.

    Returns:
        The law; None where the row has no `mp_edge`.
    """
    if record.mp_edge is None:
        return None
    n, m = sorted(record.living_shape)
    variance = record.mp_edge / (n**0.5 + m**0.5) ** 2
    return Bulk((n, m), variance, n / min(record.rows, record.cols))
