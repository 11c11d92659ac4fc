"""Exponents of one spectrum: under the chosen rule, under the others, and of its square cut."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from specdiag.records import Settings, TailFit
from specdiag.spectra import null
from specdiag.spectra.arithmetic import decides_nothing, fixed_type
from specdiag.spectra.eigenvalues import ComputeType, Spectrum, pool, spectrum
from specdiag.spectra.float_types import FloatType, RawArray
from specdiag.spectra.identity import Columns, MatrixIdentity
from specdiag.spectra.ladder import more_exact, solve
from specdiag.spectra.product_null import product_quantiles
from specdiag.spectra.square import square_null
from specdiag.spectra.tail_rules import TAIL_RULES, TailRule
from specdiag.spectra.tails import Tail, ks_optimal
from specdiag.spectra.trust import (
    HILL_FRACTIONS,
    MIN_EIGENVALUES,
    TailStatus,
    hill_threshold,
    judge,
    judge_square,
    tail_status,
    trusted_hill,
)


def settled(
    full: Spectrum, stack: RawArray, storage: FloatType, settings: Settings, shape: tuple[int, int]
) -> tuple[Spectrum, Tail | None]:
    """Climb the ladder where rounding could move the Hill or the KS-optimal exponent noticeably.

    Where the arithmetic was chosen by `auto`, float32 must decide no count either.

    Args:
        full: the spectrum by the first route.
        stack: raw finite values, shape [s, rows, cols].
        storage: their type.
        settings: the arithmetic that was asked for, and the fraction of the eigenvalues in the Hill tail.
        shape: rows and columns of the living part.

    Returns:
        The first spectrum that no more exact route would change noticeably, and its KS-optimal tail, if it has one.

    Raises:
        ComputationError: if a solver fails.
    """
    best = _power_law(full)
    for route in more_exact(full):
        doubtful = settings.dtype == "auto" and full.dtype == "float32" and not decides_nothing(full, best, shape)
        if not doubtful and _is_settled(full, best, settings.tail_fraction):
            break
        full = solve([stack], storage, route)
        best = _power_law(full)
    return full, best


def _is_settled(full: Spectrum, best: Tail | None, tail_fraction: float) -> bool:
    """Judge both exponents; float64 Gram arithmetic must also tell zeros from small eigenvalues.

    It cannot where its own rounding lies above the storage floor.
    """
    if full.dtype == "float64" and full.n_zero is None:
        return False
    return judge(full, tail_fraction, [] if best is None else [best]).is_settled


def _power_law(full: Spectrum) -> Tail | None:
    """The KS-optimal tail of the eigenvalues that are not zero, None where they are too few or all equal."""
    usable = _nonzero(full)
    best = ks_optimal(usable) if len(usable) >= MIN_EIGENVALUES else None
    return best if best is not None and np.isfinite(best.alpha) else None


def fit_tail(
    full: Spectrum,
    alive: Spectrum,
    matrix: MatrixIdentity,
    settings: Settings,
    stack: RawArray,
    storage: FloatType,
) -> TailFit:
    """Fit alpha by the chosen rule, with its error, its null and what speaks against it.

    A product of two factors is compared with products of noise where its ratios are known. Else it has no null: the
    Marchenko-Pastur law is that of a matrix of full rank. Where rows or columns are dead, rho and z compare the living
    part with random matrices of its shape, and alpha is that of all.

    Args:
        full: the settled spectrum.
        alive: that of the living part.
        matrix: shape, slices, rank and ratios.
        settings: rule and tail fraction.
        stack: raw finite values, shape [s, rows, cols].
        storage: their type.

    Raises:
        ComputationError: if a solver fails on the windows of the rule.
    """
    rule, fraction = TAIL_RULES[settings.tail], settings.tail_fraction
    shape, n_slices = (alive.slices.shape[1], alive.longer_side), matrix.n_slices
    if rule.windows is not None:
        full = alive = pooled(rule.windows(stack, settings), storage, settings, fixed_type(settings))
        shape, n_slices = (full.slices.shape[1], full.longer_side), len(full.slices)
    usable = _nonzero(full) if rule.drops_zeros else full.eigenvalues
    status = _rule_status(full, usable, rule, fraction)
    if status != "ok":
        return TailFit(tail=rule.name, status=status)
    fit = rule.fit(usable, fraction)
    error = full.alpha_error(fit.alpha, fit.xmin)
    if not np.isfinite(error):
        return TailFit(tail=rule.name, status="degenerate")
    has_null = rule.has_null and matrix.rank is None and len(alive.eigenvalues) >= MIN_EIGENVALUES
    is_reference = rule.is_reference and fraction == 0.5
    alpha_null = null.alpha_null(lambda e: rule.fit(e, fraction), shape, n_slices) if has_null else None
    if rule.has_null and matrix.ratios is not None:
        alpha_null = rule.fit(product_quantiles(len(full.eigenvalues), matrix.ratios), fraction).alpha
    alpha = _reference_alpha(full, fit) if is_reference else fit.alpha
    has_dead = len(alive.eigenvalues) < len(full.eigenvalues)
    compared = rule.fit(alive.eigenvalues, fraction).alpha if has_null and has_dead else alpha
    return TailFit(
        tail=rule.name,
        status="ok",
        alpha=alpha,
        k=fit.k,
        xmin=fit.xmin,
        ks=fit.ks,
        n_clipped=fit.n_clipped,
        se_iid=(alpha - 1) / fit.k**0.5,
        alpha_error=error,
        alpha_null=alpha_null,
        rho=None if alpha_null is None else (compared - 1) / (alpha_null - 1),
        z=null.z_score(compared, shape) if has_null and is_reference and n_slices == 1 else None,
    )


def _rule_status(full: Spectrum, usable: NDArray[np.float64], rule: TailRule, fraction: float) -> TailStatus:
    """The status of the tail of a rule; of one that scans all thresholds, that of the lowest."""
    if len(usable) < MIN_EIGENVALUES:
        return "too_few" if len(full.eigenvalues) < MIN_EIGENVALUES else "low_rank"
    return tail_status(full, hill_threshold(full, fraction) if rule.uses_fraction else float(usable[0]))


def _reference_alpha(full: Spectrum, fit: Tail) -> float:
    """For float32 SVD the AlphaDecay reference's own float32 arithmetic, to the bit; else the fit's alpha."""
    if full.method != "svd" or full.dtype != "float32":
        return fit.alpha
    import torch

    logs = torch.log(torch.from_numpy(full.eigenvalues).to(torch.float32))
    i0, k = len(logs) - fit.k, float(fit.k)
    return (1 + k / (torch.sum(logs[i0:]) - k * logs[i0])).item()


def _nonzero(full: Spectrum) -> NDArray[np.float64]:
    return full.eigenvalues[full.eigenvalues > full.floor]


def other_tails(full: Spectrum, best: Tail | None) -> Columns:
    """Give Hill at three tail fractions, each only where it is to be trusted, and the KS-optimal power law.

    Args:
        full: the settled spectrum.
        best: its KS-optimal tail; None for no exponent at all.

    Returns:
        Values by field name of `ModuleRecord`.
    """
    if best is None:
        return {"pl_alpha": None}
    columns: Columns = {f"alpha_{100 * f:.0f}": trusted_hill(full, f) for f in HILL_FRACTIONS}
    return columns | {"pl_alpha": best.alpha, "pl_xmin": best.xmin, "pl_ks": best.ks, "pl_k": best.k}


def square_exponent(alive: Spectrum, stack: RawArray, storage: FloatType) -> tuple[TailStatus, Columns]:
    """Give square_alpha, square_rho and square_status, by a more exact route where rounding could move them noticeably.

    Args:
        alive: the settled spectrum of the living part.
        stack: raw finite values, shape [s, rows, cols].
        storage: their type.

    Returns:
        The status of the Hill tail at fraction 1/2, and values by field name of `ModuleRecord`.

    Raises:
        ComputationError: if a solver fails.
    """
    shape = alive.slices.shape[1], alive.longer_side
    found = judge_square(alive)
    for route in more_exact(alive):
        if found.is_settled or found.status == "low_rank":
            break
        found = judge_square(solve([stack], storage, route).living(shape))
    if found.fit is None or not found.is_precise:
        return found.status, {"square_status": "imprecise" if found.status == "ok" else found.status}
    alpha = found.fit.alpha
    rho = (alpha - 1) / (square_null(shape) - 1)
    return "ok", {"square_alpha": alpha, "square_rho": rho, "square_status": "ok"}


def pooled(windows: Iterable[RawArray], storage: FloatType, settings: Settings, dtype: ComputeType) -> Spectrum:
    """Solve equal windows by the chosen method and pool their eigenvalues to one spectrum.

    Args:
        windows: raw finite values of each, shape [s, rows, cols].
        storage: their type.
        settings: the method.
        dtype: the arithmetic.

    Raises:
        ComputationError: if a solver fails.
    """
    return pool([spectrum(w, storage, method=settings.method, dtype=dtype) for w in windows])
