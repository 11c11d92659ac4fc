"""Everything that is said of one matrix: status, exponents with their errors, nulls and twins, metrics."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.records import ModuleRecord, Settings, Status, TailFit
from specdiag.spectra import metrics, null
from specdiag.spectra.eigenvalues import ComputeType, Spectrum, exact, pool, spectrum
from specdiag.spectra.farms import farms_windows
from specdiag.spectra.float_types import FloatType
from specdiag.spectra.identity import MatrixIdentity, identity
from specdiag.spectra.scan import Scan
from specdiag.spectra.square import square_windows
from specdiag.spectra.tails import Tail, fix_finger, hill, hill_paper, ks_optimal

MIN_EIGENVALUES = 50
"""Fewer than this have metrics and no exponent, as in the AlphaDecay reference."""

FLOAT32_RANGE = (1e-12, 1e12)
"""Where the largest value must lie for float32 to square and add without overflow or loss."""

TAILS: dict[str, Callable[[NDArray[np.float64], float], Tail]] = {
    "hill": hill,
    "hill-paper": hill_paper,
    "ks": lambda eigenvalues, _: ks_optimal(eigenvalues),
    "fix-finger": lambda eigenvalues, _: fix_finger(eigenvalues),
    "farms": hill,
}
"""Tail rules by name: (eigenvalues, tail fraction) -> fit. FARMS is `hill` on the pooled eigenvalues of windows."""


class Eigenvalues(NamedTuple):
    """The spectra of one matrix, ascending, shape [n]."""

    measured: NDArray[np.float64]
    randomized: NDArray[np.float64] | None = None
    """With the entries permuted; None where that was not asked for, or could not be."""


def measure(
    matrix: MatrixIdentity,
    stack: NDArray[Any],
    storage: FloatType,
    scanned: Scan,
    settings: Settings,
    full: Spectrum | None = None,
    square: Spectrum | None = None,
) -> tuple[ModuleRecord, Eigenvalues]:
    """One row of the report and the eigenvalues behind it; randomised ones exactly where it has `rand_spectral_norm`.

    Args:
        matrix: what is measured.
        stack: its raw values, shape [s, rows, cols].
        storage: their type.
        scanned: `scan` of them.
        settings: what to compute.
        full: the spectrum, where an accelerator has computed it.
        square: the pooled spectrum of the square windows, likewise.

    Raises:
        ComputationError: if a solver fails.
    """
    columns = _columns(matrix, settings) | {
        name: getattr(scanned, name)
        for name in ("n_nonfinite", "n_denormal", "n_saturated", "n_dead_rows", "n_dead_cols", "digest")
    }
    n = stack.shape[0] * min(stack.shape[1:])
    if scanned.n_nonfinite:
        return ModuleRecord(**columns, status="nonfinite"), Eigenvalues(np.empty(0))
    if scanned.largest == 0:
        norms = dict.fromkeys(("spectral_norm", "frobenius_norm"), 0.0)
        record = ModuleRecord(**columns, **norms, status="zero", n_eigenvalues=n, n_zero=n, matrix_rank=0)
        return record, Eigenvalues(np.zeros(n))

    dtype = settings.dtype if FLOAT32_RANGE[0] < scanned.largest < FLOAT32_RANGE[1] else "float64"
    full = full or spectrum(stack, storage, method=settings.method, dtype=dtype)
    full, best = _guarded(full, stack, storage, settings)
    columns |= {"method": full.method, "compute_dtype": full.dtype, "n_eigenvalues": n, "n_zero": full.n_zero}
    fit = fit_tail(full, matrix, settings, stack, storage)
    columns |= {name: getattr(fit, name) for name in TailFit.__struct_fields__}
    columns |= _other_tails(full, best if fit.status in ("ok", "low_rank") else None)
    columns |= _metrics(full, matrix, columns["pl_alpha"])
    if settings.square and n >= MIN_EIGENVALUES and matrix.rank is None:
        columns |= _square(full, square, stack, storage, settings)
    randomized = None
    if settings.randomize and matrix.rank is None:
        found, randomized = _randomized(stack, storage, matrix, settings)
        columns |= found
    return ModuleRecord(**columns), Eigenvalues(full.eigenvalues, randomized)


def failed(matrix: MatrixIdentity, settings: Settings) -> ModuleRecord:
    """The row of a matrix that could not be read or solved."""
    return ModuleRecord(**_columns(matrix, settings), status="failed")


def fit_tail(
    full: Spectrum, matrix: MatrixIdentity, settings: Settings, stack: NDArray[Any], storage: FloatType
) -> TailFit:
    """The exponent under the chosen rule with its error, its null and what it says against it.

    A product of two factors has no null: the Marchenko-Pastur law is that of a matrix of full rank.
    """
    tail, fraction = settings.tail, settings.tail_fraction
    shape, n_slices = matrix.shape, matrix.n_slices
    if tail == "farms":
        windows = list(farms_windows(stack))
        full = _pooled(windows, storage, settings, full.dtype)
        shape, n_slices = windows[0].shape[1:], 1
    status = _status(full, tail, fraction)
    if status != "ok":
        return TailFit(tail=tail, status=status)
    rule = TAILS[tail]
    fit = rule(_usable(full, tail), fraction)
    error = full.alpha_error(fit.alpha, fit.xmin)
    if not np.isfinite(error):
        return TailFit(tail=tail, status="degenerate")
    has_null = tail in ("hill", "hill-paper", "farms") and matrix.rank is None
    alpha_null = null.alpha_null(lambda e: rule(e, fraction), shape, n_slices) if has_null else None
    simulated = has_null and tail == "hill" and fraction == 0.5 and n_slices == 1
    alpha = _reference_alpha(full, fit) if tail == "hill" and fraction == 0.5 else fit.alpha
    return TailFit(
        tail=tail,
        status="ok",
        alpha=alpha,
        k=fit.k,
        xmin=fit.xmin,
        ks=fit.ks,
        se_iid=(alpha - 1) / fit.k**0.5,
        alpha_error=error,
        alpha_null=alpha_null,
        rho=None if alpha_null is None else (alpha - 1) / (alpha_null - 1),
        z=null.z_score(alpha, shape) if simulated else None,
    )


def _reference_alpha(full: Spectrum, fit: Tail) -> float:
    """For float32 SVD the AlphaDecay reference's own float32 arithmetic, to the bit; else the fit's alpha."""
    if full.method != "svd" or full.dtype != "float32":
        return fit.alpha
    import torch

    logs = torch.log(torch.from_numpy(full.eigenvalues).to(torch.float32))
    i0, k = len(logs) - fit.k, float(fit.k)
    return (1 + k / (torch.sum(logs[i0:]) - k * logs[i0])).item()


def _usable(full: Spectrum, tail: str) -> NDArray[np.float64]:
    """Hill drops nothing, for parity with its references; rules that scan all thresholds drop the zeros."""
    if tail in ("hill", "hill-paper", "farms"):
        return full.eigenvalues
    return full.eigenvalues[full.eigenvalues > full.floor]


def _status(full: Spectrum, tail: str, fraction: float) -> Status:
    if len(full.eigenvalues) < MIN_EIGENVALUES:
        return "too_few"
    usable = _usable(full, tail)
    if len(usable) < MIN_EIGENVALUES:
        return "low_rank"
    threshold = float(usable[0]) if tail in ("ks", "fix-finger") else _threshold(full, fraction)
    if threshold <= full.floor:
        return "low_rank"
    # Equal but for rounding to the storage type: both ends may be off by sigma_tol = sqrt(floor).
    if float(full.eigenvalues[-1]) ** 0.5 - threshold**0.5 <= 2 * full.floor**0.5:
        return "degenerate"
    return "ok"


def _guarded(
    full: Spectrum, stack: NDArray[Any], storage: FloatType, settings: Settings
) -> tuple[Spectrum, Tail | None]:
    """`full` and its KS-optimal tail, by a more exact route where rounding could move an exponent noticeably.

    float64 Gram arithmetic must also tell zeros from small eigenvalues, which it cannot where its own rounding lies
    above the storage floor.
    """
    best = _power_law(full)
    if (full.method, full.dtype) == ("gram", "float32") and not _trusted(full, best, settings):
        full = spectrum(stack, storage, dtype="float64")
        best = _power_law(full)
    if (full.method, full.dtype) == ("gram", "float64") and not (
        full.n_zero is not None and _trusted(full, best, settings)
    ):
        full = exact(stack, storage)
        best = _power_law(full)
    return full, best


def _trusted(full: Spectrum, best: Tail | None, settings: Settings) -> bool:
    """Whether arithmetic moves neither the Hill nor the KS-optimal exponent noticeably, or there will be none.

    Where all eigenvalues of the tail are equal but for the storage type no route is more exact.
    """
    if len(full.eigenvalues) < MIN_EIGENVALUES:
        return True
    if _threshold(full, settings.tail_fraction) <= 0:
        return False
    if _status(full, "hill", settings.tail_fraction) == "degenerate":
        return True
    fits = [hill(full.eigenvalues, settings.tail_fraction), *([] if best is None else [best])]
    return all(full.is_precise(fit.alpha, fit.xmin) for fit in fits)


def _power_law(full: Spectrum) -> Tail | None:
    """The KS-optimal tail of the eigenvalues that are not zero, None where they are too few or all equal."""
    usable = full.eigenvalues[full.eigenvalues > full.floor]
    best = ks_optimal(usable) if len(usable) >= MIN_EIGENVALUES else None
    return best if best is not None and np.isfinite(best.alpha) else None


def _other_tails(full: Spectrum, best: Tail | None) -> dict[str, Any]:
    """Hill at three tail fractions, each only where its threshold can be trusted, and the KS-optimal power law."""
    if best is None:
        return {"pl_alpha": None}
    columns: dict[str, Any] = {
        name: _trusted_hill(full, fraction)
        for name, fraction in (("alpha_25", 0.25), ("alpha_50", 0.5), ("alpha_75", 0.75))
    }
    return columns | {"pl_alpha": best.alpha, "pl_xmin": best.xmin, "pl_ks": best.ks, "pl_k": best.k}


def _metrics(full: Spectrum, matrix: MatrixIdentity, pl_alpha: float | None) -> dict[str, Any]:
    eigenvalues = full.eigenvalues
    rank = None if full.n_zero is None else len(eigenvalues) - full.n_zero
    return {
        "spectral_norm": float(eigenvalues[-1]) ** 0.5,
        "frobenius_norm": full.frobenius2**0.5,
        "log_norm": float(np.log10(full.frobenius2)),
        "stable_rank": metrics.stable_rank(eigenvalues),
        "effective_rank": metrics.effective_rank(eigenvalues),
        "matrix_rank": rank,
        "entropy": None if rank is None else metrics.entropy(eigenvalues, rank),
        "detx_k": None if rank is None else metrics.detx_k(eigenvalues),
        "alpha_weighted": None if pl_alpha is None else pl_alpha * float(np.log10(eigenvalues[-1])),
        "log_alpha_norm": None if pl_alpha is None else metrics.log_alpha_norm(eigenvalues, pl_alpha),
    } | (_against_noise(eigenvalues, matrix.shape) if matrix.rank is None else {})


def _against_noise(eigenvalues: NDArray[np.float64], shape: tuple[int, int]) -> dict[str, Any]:
    """What a random matrix of the same shape and norm would have."""
    edge = metrics.mp_edge(eigenvalues, shape)
    return {
        "mp_edge": edge,
        "mp_spikes": metrics.mp_spikes(eigenvalues, shape, edge),
        "mp_softrank": edge / float(eigenvalues[-1]),
    }


def _square(
    full: Spectrum, square: Spectrum | None, stack: NDArray[Any], storage: FloatType, settings: Settings
) -> dict[str, Any]:
    """alpha_square and rho_square: Hill at tail fraction 1/2 on the pooled eigenvalues of square windows."""
    rows, cols = stack.shape[1:]
    if rows == cols:
        square = full
    elif square is None:
        square = _pooled(square_windows(stack), storage, settings, full.dtype)
    alpha = _trusted_hill(square, 0.5)
    if alpha is None and (square.method, square.dtype) == ("gram", "float32"):
        square = _pooled(square_windows(stack), storage, settings, "float64")
        alpha = _trusted_hill(square, 0.5)
    if alpha is None or _status(square, "hill", 0.5) != "ok":
        return {"alpha_square": None}
    return {"alpha_square": alpha, "rho_square": (alpha - 1) / (null.alpha_null_square(min(rows, cols)) - 1)}


def _trusted_hill(full: Spectrum, fraction: float) -> float | None:
    """The Hill exponent, None where its threshold is zero to the storage precision or lost to rounding."""
    threshold = _threshold(full, fraction)
    if threshold <= full.floor:
        return None
    alpha = hill(full.eigenvalues, fraction).alpha
    return alpha if full.is_precise(alpha, threshold) else None


def _threshold(full: Spectrum, fraction: float) -> float:
    """The eigenvalue at which a Hill tail of this fraction begins."""
    n = len(full.eigenvalues)
    return float(full.eigenvalues[min(int(n * (1 - fraction) + 1e-9), n - 1)])


def _pooled(windows: Iterable[NDArray[Any]], storage: FloatType, settings: Settings, dtype: ComputeType) -> Spectrum:
    """The eigenvalues of several equal windows as one spectrum."""
    parts = [spectrum(w, storage, method=settings.method, dtype=dtype) for w in windows]
    return pool(parts)


def _randomized(
    stack: NDArray[Any], storage: FloatType, matrix: MatrixIdentity, settings: Settings
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """Spectral norm and spikes of the matrix with its entries permuted, and its eigenvalues.

    A spike there is a few huge entries or a mean that is not zero.
    """
    rng = np.random.default_rng([settings.seed, zlib.crc32(matrix.key.encode())])
    shuffled = rng.permutation(stack.reshape(-1)).reshape(stack.shape)
    eigenvalues = spectrum(shuffled, storage).eigenvalues
    edge = metrics.mp_edge(eigenvalues, matrix.shape)
    columns = {
        "rand_spectral_norm": float(eigenvalues[-1]) ** 0.5,
        "rand_spikes": metrics.mp_spikes(eigenvalues, matrix.shape, edge),
    }
    return columns, eigenvalues


def _columns(matrix: MatrixIdentity, settings: Settings) -> dict[str, Any]:
    return identity(matrix) | {"tail": settings.tail, "method": settings.method, "compute_dtype": settings.dtype}
