"""The fit test: which of several laws the tail of a spectrum follows, by likelihood ratios.

Two laws are compared by R = sum_i (ln p_i - ln q_i) over the k points. R/(sd sqrt(k)), sd the standard deviation of the
k differences, would be standard normal if the points were independent and neither law better (Vuong 1989, Econometrica
57; Clauset, Shalizi and Newman 2009, section 5; Alstott, Bullmore and Plenz 2014, the package `powerlaw`). The
truncated power law and the lognormal have the power law as a limit: against it 2R has the chi-square law of one degree
of freedom (Wilks). Where that tells nothing, the power law, which is simpler, stands for both.

Eigenvalues are not independent, they repel: p-values are not calibrated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc, gammaincc

from specdiag.records import LAW_NAMES, LawName, ModuleRecord
from specdiag.spectra.laws import Bulk, Law, bulk_with_spikes, exponential, lognormal, power_law, truncated
from specdiag.spectra.limits import MIN_TESTED_POINTS
from specdiag.spectra.tail_rules import TAIL_RULES

LEVEL = 0.05
"""Largest p of a ratio that tells two laws apart."""
_EXTENSIONS: frozenset[LawName] = frozenset({"truncated-power-law", "lognormal"})
"""Laws that have the power law as a limit, and one more parameter."""


class Ratio(NamedTuple):
    """A law against another one.

    Attributes:
        value: R, ln of the ratio of their likelihoods; above 0 where the first fits better.
        spread: standard deviation of R for independent points.
        p: of an R so far from 0 if neither were better. Not calibrated: eigenvalues are not independent.
    """

    value: float
    spread: float
    p: float

    @property
    def normalised(self) -> float:
        """R over its spread; 0 where the two laws are one."""
        return self.value / self.spread if self.spread else 0.0


Ratios = Mapping[tuple[LawName, LawName], Ratio]
"""Each pair of laws once, in the order of `LAW_NAMES`."""


@dataclass(frozen=True, slots=True)
class FitComparison:
    """Laws fitted to the same tail.

    Attributes:
        xmin: where the tail begins.
        k: its number of points.
        laws: those that could be fitted, by name.
        ratios: of each pair.
        candidates: laws that no likelier one can be told from, the likeliest first. A law that has the power law
            as a limit and is no better is none.
    """

    xmin: float
    k: int
    laws: Mapping[LawName, Law]
    ratios: Ratios
    candidates: tuple[LawName, ...]

    @property
    def best(self) -> LawName | None:
        """The law that fits best; None where the ratios do not tell."""
        return self.candidates[0] if len(self.candidates) == 1 else None

    def compare(self, first: LawName, second: LawName) -> Ratio:
        """Hold two laws against each other.

        Args:
            first: the law that a ratio above 0 speaks for.
            second: another one.

        Raises:
            KeyError: one of them was not fitted, or they are one.
        """
        return against(self.ratios, first, second)


def compare_laws(points: NDArray[np.float64], xmin: float, bulk: Bulk | None = None) -> FitComparison:
    """Fit every law to a tail and say which of them fits best.

    Args:
        points: eigenvalues of the tail, ascending, at least xmin and not all equal.
        xmin: where the laws begin.
        bulk: the Marchenko-Pastur law of the spectrum; None leaves it out, as where no point lies in it.
    """
    fits = (power_law, truncated, exponential, lognormal)
    found = [fit(points, xmin) for fit in fits]
    noise = None if bulk is None else bulk_with_spikes(points, xmin, bulk)
    laws: dict[LawName, Law] = {law.name: law for law in (found if noise is None else [*found, noise])}
    ratios: dict[tuple[LawName, LawName], Ratio] = {
        (a, b): _ratio(a, b, laws[a].log_densities - laws[b].log_densities)
        for i, a in enumerate(LAW_NAMES)
        for b in LAW_NAMES[i + 1 :]
        if a in laws and b in laws
    }
    return FitComparison(xmin, len(points), laws, ratios, candidates(ratios))


def candidates(ratios: Ratios) -> tuple[LawName, ...]:
    """Give the laws that no likelier one can be told from, the likeliest first.

    Args:
        ratios: of each pair of the laws, the power law among them.
    """
    names: list[LawName] = [name for name in LAW_NAMES if name == "power-law" or ("power-law", name) in ratios]

    def gain(name: LawName) -> float:
        return 0.0 if name == "power-law" else -ratios["power-law", name].value

    rivals: list[LawName] = [name for name in names if name not in _EXTENSIONS or ratios["power-law", name].p <= LEVEL]
    rivals.sort(key=gain, reverse=True)
    beaten = {name for i, name in enumerate(rivals) if any(against(ratios, r, name).p <= LEVEL for r in rivals[:i])}
    return tuple(name for name in rivals if name not in beaten)


def against(ratios: Ratios, first: LawName, second: LawName) -> Ratio:
    """Hold two laws against each other.

    Args:
        ratios: of each pair.
        first: the law that a ratio above 0 speaks for.
        second: another one.

    Raises:
        KeyError: there is no ratio of these two.
    """
    if (first, second) in ratios:
        return ratios[first, second]
    found = ratios[second, first]
    return found._replace(value=-found.value)


def power_law_p(ratios: Ratios) -> float:
    """Give the smallest p of the power law against a likelier law; 1 where there is none.

    Args:
        ratios: of each pair of the laws.
    """
    return min((r.p for (first, _), r in ratios.items() if first == "power-law" and r.value < 0), default=1.0)


def untested(record: ModuleRecord) -> str | None:
    """Say why a matrix has no fit test; None where it has one.

    Args:
        record: its row.
    """
    if record.alpha is None or record.k is None:
        return f"it has no exponent (status {record.status})"
    if TAIL_RULES[record.tail].windows is not None:
        return f"tail={record.tail} fits the eigenvalues of windows, which are not kept"
    if record.k < MIN_TESTED_POINTS:
        return f"its tail has {record.k} eigenvalues, and fewer than {MIN_TESTED_POINTS} do not tell any two laws apart"
    return None


def bulk_of(record: ModuleRecord) -> Bulk | None:
    """Find the Marchenko-Pastur law that ends at `mp_edge`.

    Args:
        record: the row of a matrix.

    Returns:
        That of the living part; None where the row has no `mp_edge`.
    """
    if record.mp_edge is None:
        return None
    n, m = record.living_shape
    return Bulk(record.living_shape, record.mp_edge / (n**0.5 + m**0.5) ** 2)


def pooled_ratios(parts: Iterable[Ratios]) -> dict[tuple[LawName, LawName], Ratio]:
    """Add up the ratios of several tails, each with its own parameters, as of independent points.

    Args:
        parts: of each tail. A law that is not fitted to all of them is left out.
    """
    parts = list(parts)
    pairs = [pair for pair in (parts[0] if parts else ()) if all(pair in part for part in parts)]
    found: dict[tuple[LawName, LawName], Ratio] = {}
    for first, second in pairs:
        values = [part[first, second] for part in parts]
        spread = sum(ratio.spread**2 for ratio in values) ** 0.5
        found[first, second] = _judged(first, second, sum(ratio.value for ratio in values), spread, len(values))
    return found


def _ratio(first: LawName, second: LawName, differences: NDArray[np.float64]) -> Ratio:
    spread = float(differences.std()) * len(differences) ** 0.5
    return _judged(first, second, float(differences.sum()), spread, 1)


def _judged(first: LawName, second: LawName, value: float, spread: float, n_parameters: int) -> Ratio:
    """The ratio with its p, by Wilks where one law is a limit of the other, else by Vuong."""
    if first == "power-law" and second in _EXTENSIONS:
        p = gammaincc(n_parameters / 2, abs(value))
    else:
        p = erfc(abs(value) / (2**0.5 * spread)) if spread else 1.0
    return Ratio(value, spread, float(p))
