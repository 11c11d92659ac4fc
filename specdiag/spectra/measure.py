"""The row of one matrix: status, exponents with their errors and nulls, metrics."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.records import ModuleRecord, Settings, TailFit
from specdiag.spectra import metrics
from specdiag.spectra.arithmetic import first_type, fixed_type
from specdiag.spectra.eigenvalues import Spectrum, spectrum, storage_floor
from specdiag.spectra.exponents import fit_tail, other_tails, settled, square_exponent
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray
from specdiag.spectra.identity import Columns, MatrixIdentity, identity
from specdiag.spectra.living import living_shape
from specdiag.spectra.scan import Scan

FLOAT32_RANGE = (1e-12, 1e12)
"""Where the largest value must lie for float32 to square and add without overflow or loss."""


class Eigenvalues(NamedTuple):
    """The spectra of one matrix, ascending, shape [n]."""

    measured: NDArray[np.float64]
    randomized: NDArray[np.float64] | None = None
    """With the entries permuted; None where that was not asked for, or could not be."""


def measure(
    matrix: MatrixIdentity,
    stack: RawArray,
    storage: FloatType,
    scanned: Scan,
    settings: Settings,
    full: Spectrum | None = None,
) -> tuple[ModuleRecord, Eigenvalues]:
    """Measure one matrix.

    Args:
        matrix: name, role, shape and rank.
        stack: its raw values, shape [s, rows, cols].
        storage: their type.
        scanned: `scan` of them.
        settings: what to compute.
        full: the spectrum, where an accelerator has computed it.

    Returns:
        Its row and the eigenvalues behind it, randomised ones exactly where the row has `rand_spectral_norm`.

    Raises:
        ComputationError: if a solver fails.
    """
    columns = _columns(matrix, settings) | {
        name: getattr(scanned, name)
        for name in ("n_nonfinite", "n_denormal", "n_saturated", "n_dead_rows", "n_dead_cols", "digest")
    }
    if matrix.rank is not None:  # rows of the core are none of the update
        columns |= {"n_dead_rows": 0, "n_dead_cols": 0}
    n = stack.shape[0] * min(stack.shape[1:])
    if scanned.n_nonfinite:
        return ModuleRecord(**columns, status="nonfinite"), Eigenvalues(np.empty(0))
    if scanned.largest == 0:
        norms = dict.fromkeys(("spectral_norm", "frobenius_norm"), 0.0)
        record = ModuleRecord(**columns, **norms, status="zero", n_eigenvalues=n, n_zero=n, matrix_rank=0)
        return record, Eigenvalues(np.zeros(n))

    eps = storage.eps if matrix.balanced_eps is None else matrix.balanced_eps
    dtype = fixed_type(settings) if matrix.rank is not None else first_type(settings, eps)
    dtype = dtype if FLOAT32_RANGE[0] < scanned.largest < FLOAT32_RANGE[1] else "float64"
    full = full or spectrum(stack, storage, method=settings.method, dtype=dtype)
    if matrix.balanced_eps is not None:
        return _square_alone(columns, full, stack, storage), Eigenvalues(full.eigenvalues)
    shape = living_shape(stack, storage, full.frobenius2) if matrix.rank is None else matrix.shape
    full, best = settled(full, stack, storage, settings, shape)
    columns |= {"method": full.method, "compute_dtype": full.dtype, "n_eigenvalues": n, "n_zero": full.n_zero}
    alive = full.living(shape) if matrix.rank is None else full
    columns |= {"living_rows": shape[0], "living_cols": shape[1]} if matrix.rank is None else {}
    fit = fit_tail(full, alive, matrix, settings, stack, storage)
    columns |= {name: getattr(fit, name) for name in TailFit.__struct_fields__}
    columns |= other_tails(full, best if fit.status in ("ok", "low_rank") else None)
    columns |= _metrics(full, columns["pl_alpha"])
    if matrix.rank is None:
        status, square = square_exponent(alive, stack, storage)
        compared = status in ("ok", "too_few") and _has_bulk(alive, shape)
        columns |= square | (_against_noise(alive.eigenvalues, shape) if compared else {})
    else:
        columns |= {"square_status": "update" if matrix.ratios is None else "product"}
    randomized = None
    if settings.randomize and matrix.rank is None:
        found, randomized = _randomized(stack, storage, matrix, settings)
        columns |= found
    return ModuleRecord(**columns), Eigenvalues(full.eigenvalues, randomized)


def _square_alone(columns: Columns, full: Spectrum, stack: RawArray, storage: FloatType) -> ModuleRecord:
    """Make the row of a balanced form, which no report shows: square_alpha, and what the cache checks."""
    _, square = square_exponent(full.living(living_shape(stack, storage, full.frobenius2)), stack, storage)
    columns |= square | {
        "status": "ok",
        "method": full.method,
        "compute_dtype": full.dtype,
        "n_eigenvalues": len(full.eigenvalues),
        "spectral_norm": float(full.eigenvalues[-1]) ** 0.5,
        "frobenius_norm": full.frobenius2**0.5,
    }
    return ModuleRecord(**columns)


def failed(matrix: MatrixIdentity, settings: Settings) -> ModuleRecord:
    """Make the row of a matrix that could not be read or solved."""
    return ModuleRecord(**_columns(matrix, settings), status="failed")


def _metrics(full: Spectrum, pl_alpha: float | None) -> Columns:
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
    }


def _has_bulk(alive: Spectrum, shape: tuple[int, int]) -> bool:
    """Tell whether the median is more than rounding to float32 alone can make.

    Float64 files hold products of factors that were computed in float32: what they have of noise is that rounding.
    """
    eigenvalues = alive.eigenvalues
    floor = storage_floor(alive.frobenius2 / len(alive.slices), shape, FLOAT_TYPES["F32"].eps)
    return float(eigenvalues[(len(eigenvalues) - 1) // 2]) > floor


def _against_noise(eigenvalues: NDArray[np.float64], shape: tuple[int, int]) -> Columns:
    """Columns that compare with a random matrix of the same shape and norm."""
    edge = metrics.mp_edge(eigenvalues, shape)
    return {
        "mp_edge": edge,
        "mp_spikes": metrics.mp_spikes(eigenvalues, shape, edge),
        "mp_softrank": edge / float(eigenvalues[-1]),
    }


def _randomized(
    stack: RawArray, storage: FloatType, matrix: MatrixIdentity, settings: Settings
) -> tuple[Columns, NDArray[np.float64]]:
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


def _columns(matrix: MatrixIdentity, settings: Settings) -> Columns:
    return identity(matrix) | {
        "tail": settings.tail,
        "method": settings.method,
        "compute_dtype": fixed_type(settings),
    }
