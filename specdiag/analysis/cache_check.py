"""Checks that a kept result can belong to a matrix: its checksum shows only that it was written whole."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.records import ModuleRecord, Settings
from specdiag.spectra.eigenvalues import ComputeType, Method
from specdiag.spectra.measure import Eigenvalues
from specdiag.storage.plausibility import implausible

_NO_SPECTRUM = ("nonfinite",)
_SAME = 1e-3
"""Relative difference of the squared Frobenius norm to the sum of the eigenvalues, far above what float32 leaves."""


def contradiction(
    record: ModuleRecord, eigenvalues: Eigenvalues, matrix: WeightMatrix, settings: Settings, digest: str
) -> str | None:
    """Say why a row and its spectra are not those of a matrix; None where they may be.

    Args:
        record: the row.
        eigenvalues: the spectra.
        matrix: what was looked for.
        settings: how it is measured.
        digest: SHA-256 of its values.
    """
    n = 0 if record.status in _NO_SPECTRUM else matrix.n_slices * (matrix.rank or min(matrix.shape))
    if record.digest != digest or (record.rows, record.cols, record.n_slices) != (*matrix.shape, matrix.n_slices):
        return "its row is of another matrix"
    if record.tail != settings.tail or not _is_method(record) or record.status == "failed":
        return f"its row has tail {record.tail}, method {record.method} and status {record.status}"
    if record.n_eigenvalues != n:
        return f"its row says {record.n_eigenvalues} eigenvalues, the matrix has {n}"
    if problem := _odd_number(record) or (implausible(record) if matrix.balanced_eps is None else None):
        return problem
    return _odd_spectra(record, eigenvalues, n, permuted=_is_permuted(record, matrix, settings))


def _is_method(record: ModuleRecord) -> bool:
    return record.method in get_args(Method) and record.compute_dtype in get_args(ComputeType)


def _is_permuted(record: ModuleRecord, matrix: WeightMatrix, settings: Settings) -> bool:
    return (
        settings.randomize
        and matrix.rank is None
        and matrix.balanced_eps is None
        and record.status not in (*_NO_SPECTRUM, "zero")
    )


def _odd_number(record: ModuleRecord) -> str | None:
    """A column that no measurement gives."""
    for name in ModuleRecord.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
    return None


def _odd_spectra(record: ModuleRecord, eigenvalues: Eigenvalues, n: int, *, permuted: bool) -> str | None:
    pairs = [("spectrum", eigenvalues.measured, record.spectral_norm)]
    if permuted:
        if eigenvalues.randomized is None:
            return "the spectrum of the permuted entries is missing"
        pairs.append(("spectrum of the permuted entries", eigenvalues.randomized, record.rand_spectral_norm))
    elif eigenvalues.randomized is not None or record.rand_spectral_norm is not None:
        return "it has a spectrum of permuted entries that was not asked for"
    for what, values, norm in pairs:
        if problem := _odd_spectrum(values, n, norm):
            return f"its {what} {problem}"
    total, norm = float(eigenvalues.measured.sum()), record.frobenius_norm or 0.0
    return (
        None if abs(total - norm**2) <= _SAME * norm**2 else f"its eigenvalues add up to {total:.6g}, not {norm**2:.6g}"
    )


def _odd_spectrum(values: NDArray[np.float64], n: int, norm: float | None) -> str | None:
    if values.size != n:
        return f"has {values.size} of {n} eigenvalues"
    if not n:
        return None
    if not np.isfinite(values).all() or values[0] < 0 or (np.diff(values) < 0).any():
        return "is not finite, negative or not ascending"
    return None if norm == float(values[-1]) ** 0.5 else f"ends at {float(values[-1]):.6g}, its norm is {norm}"
