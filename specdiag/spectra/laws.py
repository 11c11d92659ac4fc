"""Laws that the upper tail of a spectrum may follow, each fitted to the same points x >= xmin by maximum likelihood.

A law is a density on x >= xmin, so that likelihoods can be compared. The power law, its truncated form, the exponential
and the lognormal are those of Clauset, Shalizi and Newman 2009 (SIAM Review 51, table 2.1). The last is a
Marchenko-Pastur bulk with spikes, the "bulk+spikes" of Martin and Mahoney 2021 (Journal of Machine Learning Research
22).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr

from specdiag.records import LawName
from specdiag.spectra import truncated_power_law
from specdiag.spectra.marchenko_pastur import angle_of, mass_above, mp_density
from specdiag.spectra.metrics import spike_bound
from specdiag.spectra.roots import root

Array = NDArray[np.float64]

_FAR_BELOW = 100.0
"""Standard deviations between the mode of ln x and ln xmin from which on a lognormal tail is a power law: the two
differ by less than 1e-7 a point."""


class Law(NamedTuple):
    """A law with its likeliest parameters.

    Attributes:
        name: of the law.
        parameters: by name; see `docs/numbers.md` for the formulas.
        log_densities: ln of its density at each point, shape [k].
    """

    name: LawName
    parameters: Mapping[str, float]
    log_densities: Array

    @property
    def log_likelihood(self) -> float:
        """Their sum."""
        return float(self.log_densities.sum())


class Bulk(NamedTuple):
    """The Marchenko-Pastur law of the bulk of a spectrum: shape of the matrix and variance of its entries."""

    shape: tuple[int, int]
    variance: float

    @property
    def edge(self) -> float:
        """The largest eigenvalue of the law."""
        n, m = self.shape
        return self.variance * (n**0.5 + m**0.5) ** 2


def power_law(points: Array, xmin: float) -> Law:
    """Fit p(x) = (alpha - 1)/xmin (x/xmin)^-alpha; alpha is that of `tails.hill` on these points.

    Args:
        points: ascending, at least xmin and not all equal to it.
        xmin: where the law begins.
    """
    logs = np.log(points / xmin)
    slope = 1 / float(logs.mean())
    return Law("power-law", {"alpha": 1 + slope}, np.log(slope / xmin) - (1 + slope) * logs)


def truncated(points: Array, xmin: float) -> Law:
    """Fit p(x) ~ x^-alpha e^(-rate x), alpha >= 1 and rate >= 0; at rate 0 it is the power law.

    Args:
        points: ascending, at least xmin and not all equal to it.
        xmin: where the law begins.
    """
    logs, excess = np.log(points / xmin), (points - xmin) / xmin
    alpha, b = truncated_power_law.fit(logs, excess)
    densities = truncated_power_law.log_density(logs, excess, alpha, b) - np.log(xmin)
    return Law("truncated-power-law", {"alpha": alpha, "rate": b / xmin}, densities)


def exponential(points: Array, xmin: float) -> Law:
    """Fit p(x) = rate e^(-rate (x - xmin)).

    Args:
        points: ascending, at least xmin and not all equal to it.
        xmin: where the law begins.
    """
    excess = points - xmin
    rate = 1 / float(excess.mean())
    return Law("exponential", {"rate": rate}, np.log(rate) - rate * excess)


def lognormal(points: Array, xmin: float) -> Law:
    """Fit the normal law of ln x with mean mu and standard deviation sigma, cut at xmin.

    With t = (ln xmin - mu)/sigma and h the hazard of the standard normal law at t, y = ln(x/xmin) has the mean
    sigma (h - t), and E y^2/(E y)^2 = (1 - t (h - t))/(h - t)^2 rises with t from 1 to 2: one equation for t. Where the
    points have 2 or more, the likelihood rises without end as mu falls; its limit is the power law's.

    Args:
        points: ascending, at least xmin and not all equal to it.
        xmin: where the law begins.
    """
    logs = np.log(points / xmin)
    mean = float(logs.mean())
    wanted = float(np.square(logs).mean()) / mean**2
    if wanted >= _dispersion(_FAR_BELOW):
        return Law("lognormal", {"mu": -np.inf, "sigma": np.inf}, power_law(points, xmin).log_densities)
    # Below -1 the ratio is less than 1 + 2/t^2.
    low = -2 - (2 / max(wanted - 1, np.finfo(float).tiny)) ** 0.5
    t = root(lambda s: _dispersion(s) - wanted, low, _FAR_BELOW)
    sigma = mean / (_hazard(t) - t)
    log_norm = np.log(sigma * (2 * np.pi) ** 0.5) + float(log_ndtr(-t))
    densities = -((t + logs / sigma) ** 2) / 2 - log_norm - np.log(points)
    return Law("lognormal", {"mu": float(np.log(xmin)) - sigma * t, "sigma": sigma}, densities)


def bulk_with_spikes(points: Array, xmin: float, bulk: Bulk) -> Law | None:
    """Give the Marchenko-Pastur law above xmin, and a power law for the share of the points above its edge.

    The bulk is that of the whole spectrum (`metrics.mp_edge`), not fitted to these points: the likelihood of an edge
    jumps as it passes a point. The power law begins at the edge, and is at least as wide as the largest eigenvalue of
    noise varies (`metrics.spike_bound`): its density may not grow without bound around a single spike.

    Args:
        points: ascending, at least xmin and not all equal to it.
        xmin: where the law begins.
        bulk: the law of the bulk.

    Returns:
        None where no point lies in the bulk, or one below it.
    """
    edge, (n, m) = bulk.edge, sorted(bulk.shape)
    inside, spikes = points[points < edge], points[points >= edge]
    if not len(inside) or inside[0] <= bulk.variance * (m**0.5 - n**0.5) ** 2:
        return None
    q = n / m
    mass = float(mass_above(np.array(angle_of(xmin / (bulk.variance * m), q)), q))
    parts = [np.log(mp_density(inside, bulk.shape, bulk.variance) / mass * (len(inside) / len(points)))]
    parameters = {"variance": bulk.variance, "edge": edge, "spikes": float(len(spikes))}
    if len(spikes):
        logs = np.log(spikes / edge)
        width = max(float(logs.mean()), float(np.log(spike_bound(bulk.shape, edge) / edge)))
        parameters["alpha"] = 1 + 1 / width
        parts.append(np.log(len(spikes) / len(points) / (width * edge)) - (1 + 1 / width) * logs)
    return Law("mp-bulk", parameters, np.concatenate(parts))


def _hazard(t: float) -> float:
    """Density over upper mass of the standard normal law."""
    return float((2 / np.pi) ** 0.5 / erfcx(t / 2**0.5))


def _dispersion(t: float) -> float:
    """E y^2/(E y)^2 of the standard normal law cut at t, y the distance from the cut."""
    mean = _hazard(t) - t
    return (1 - t * mean) / mean**2
