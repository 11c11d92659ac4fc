"""The decision whether an exponent is to be trusted: what the storage type leaves of its tail, and what rounding does.

`analyze` and live decay both ask here, and so take the same steps of the ladder (`ladder`) for the same spectrum.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

from specdiag.spectra.limits import MIN_EIGENVALUES
from specdiag.spectra.square import cut_alpha
from specdiag.spectra.tails import Tail, hill

if TYPE_CHECKING:
    from specdiag.spectra.eigenvalues import Spectrum

HILL_FRACTIONS = (0.25, 0.5, 0.75)
"""Tail fractions of `alpha_25`, `alpha_50` and `alpha_75`."""

TailStatus = Literal["ok", "too_few", "low_rank", "degenerate"]


class Judgement(NamedTuple):
    """A Hill fit and what speaks against it.

    Attributes:
        status: `ok`, or why the storage type leaves no exponent.
        fit: the fit; None where there are too few eigenvalues or its threshold is zero.
        is_precise: True where arithmetic moves neither its exponent nor those of the other tails noticeably.
    """

    status: TailStatus
    fit: Tail | None
    is_precise: bool

    @property
    def is_settled(self) -> bool:
        """True where a more exact route would change nothing: all is precise, or there will be no exponent.

        Where all eigenvalues of the tail are equal but for the storage type, no route is more exact.
        """
        return self.is_precise or self.status in ("too_few", "degenerate")


def judge(spectrum: Spectrum, tail_fraction: float = 0.5, others: Iterable[Tail] = ()) -> Judgement:
    """Fit the Hill tail of a spectrum and say whether its exponent is to be trusted.

    Args:
        spectrum: eigenvalues with their floor and arithmetic.
        tail_fraction: fraction of the eigenvalues in the tail, in (0, 1).
        others: further tails of the same spectrum whose exponents must be precise too.

    Returns:
        The status that the storage type allows, the fit, and whether it and the others are precise.
    """
    threshold = hill_threshold(spectrum, tail_fraction)
    status = tail_status(spectrum, threshold)
    if status == "too_few" or threshold <= 0:
        return Judgement(status, None, is_precise=False)
    fit = hill(spectrum.eigenvalues, tail_fraction)
    is_precise = all(spectrum.is_precise(tail.alpha, tail.xmin) for tail in (fit, *others))
    return Judgement(status, fit, is_precise)


def tail_status(spectrum: Spectrum, threshold: float) -> TailStatus:
    """Say what the storage type leaves of the tail that begins at a threshold.

    Args:
        spectrum: eigenvalues with their floor.
        threshold: smallest eigenvalue of the tail.

    Returns:
        `too_few` eigenvalues in all; `low_rank` where the threshold is zero to the storage precision; `degenerate`
        where all eigenvalues of the tail are equal but for rounding to the storage type; else `ok`.
    """
    if len(spectrum.eigenvalues) < MIN_EIGENVALUES:
        return "too_few"
    if threshold <= spectrum.floor:
        return "low_rank"
    # Equal but for rounding to the storage type: both ends may be off by sigma_tol = sqrt(floor).
    if float(spectrum.eigenvalues[-1]) ** 0.5 - threshold**0.5 <= 2 * spectrum.floor**0.5:
        return "degenerate"
    return "ok"


def judge_square(alive: Spectrum) -> Judgement:
    """Fit square_alpha to a spectrum and say whether it is to be trusted, whatever the rule of alpha.

    Args:
        alive: eigenvalues of the living part (`Spectrum.living`), with their slices.

    Returns:
        The status of the Hill tail at fraction 1/2, the fit and whether it is precise. The status is `low_rank` too
        where the threshold of the cut lies at its storage floor, which is that of the matrix at the shape of the cut.
    """
    status = tail_status(alive, hill_threshold(alive, 0.5)) if len(alive.eigenvalues) else "too_few"
    if status != "ok":
        return Judgement(status, None, is_precise=False)
    n, m = alive.slices.shape[1], alive.longer_side
    fit = cut_alpha(alive.slices, m)
    if fit.threshold <= alive.floor * 4 / (1 + (m / n) ** 0.5) ** 2:
        return Judgement("low_rank", None, is_precise=False)
    tail = Tail(fit.alpha, len(alive.eigenvalues) // 2, fit.threshold, float("nan"))
    return Judgement(status, tail, alive.is_precise(fit.alpha, fit.threshold))


def hill_threshold(spectrum: Spectrum, tail_fraction: float) -> float:
    """Give the eigenvalue at which a Hill tail begins.

    Args:
        spectrum: at least one eigenvalue.
        tail_fraction: fraction of the eigenvalues in the tail, in (0, 1).
    """
    n = len(spectrum.eigenvalues)
    return float(spectrum.eigenvalues[min(int(n * (1 - tail_fraction) + 1e-9), n - 1)])


def trusted_hill(spectrum: Spectrum, tail_fraction: float) -> float | None:
    """Give the Hill exponent where its threshold is neither zero to the storage precision nor lost to rounding.

    Args:
        spectrum: at least `MIN_EIGENVALUES` eigenvalues.
        tail_fraction: fraction of the eigenvalues in the tail, in (0, 1).

    Returns:
        The exponent; None where it is not to be trusted.
    """
    status, fit, is_precise = judge(spectrum, tail_fraction)
    return None if fit is None or status == "low_rank" or not is_precise else fit.alpha
