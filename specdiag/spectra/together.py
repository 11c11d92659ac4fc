"""Many small matrices of one shape at once: NumPy is asked once for all of them, LAPACK for one after the other.

Whatever is computed here has the bits that a matrix alone has: what is measured together never shows in a report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np

from specdiag.errors import ComputationError
from specdiag.records import Settings
from specdiag.spectra.arithmetic import first_type
from specdiag.spectra.blas import eigvalsh_each, syrk_each
from specdiag.spectra.eigenvalues import ComputeType, Spectrum, assemble
from specdiag.spectra.float_types import FloatType, RawArray, RealArray, RealType
from specdiag.spectra.measure import FLOAT32_RANGE
from specdiag.spectra.scan import Scan
from specdiag.spectra.solvers import torch_solves

_ALIGNED = 16
"""Bytes at whose multiples a matrix begins, as those do that NumPy allocates: kernels may sum by alignment."""


def spectra(stacks: RawArray, storage: FloatType, scanned: Sequence[Scan], settings: Settings) -> list[Spectrum | None]:
    """Give the spectrum of each matrix that `measure` would compute first.

    Args:
        stacks: raw values, shape [k, s, rows, cols]; eigenvalues of the s slices of a matrix are pooled.
        storage: their type.
        scanned: `scan` of each.
        settings: what to compute.

    Returns:
        None for a matrix that is to be solved by itself: by singular values, by torch, or with values or a result
        that are no everyday ones.
    """
    low, high = FLOAT32_RANGE
    places = [i for i, facts in enumerate(scanned) if facts.n_nonfinite == 0 and low < facts.largest < high]
    found: list[Spectrum | None] = [None] * len(stacks)
    dtype = first_type(settings, storage.eps)
    if not places or settings.method != "gram" or torch_solves(min(stacks.shape[2:]), dtype):
        return found
    with suppress(ComputationError):
        for place, full in zip(places, _spectra(stacks[places], storage, dtype), strict=True):
            found[place] = full
    return found


def _spectra(stacks: RawArray, storage: FloatType, dtype: ComputeType) -> Iterator[Spectrum | None]:
    count, s, rows, cols = stacks.shape
    n, kind = min(rows, cols), np.dtype(dtype)
    values = _room((count * s, rows, cols), kind)
    values[:] = storage.widen(stacks.reshape(values.shape), kind)
    grams = _room((count * s, n, n), kind)
    syrk_each(values, grams, tall=rows >= cols)
    traces = grams.trace(axis1=1, axis2=2, dtype=np.float64).reshape(count, s)
    slices = np.sort(eigvalsh_each(grams)).astype(np.float64).reshape(count, s, n)
    for part, norms in zip(slices, traces.tolist(), strict=True):
        is_usual = min(norms) > 0
        yield assemble(part, float(sum(norms)), (s, rows, cols), storage, "gram", dtype) if is_usual else None


def _room(shape: tuple[int, int, int], dtype: RealType) -> RealArray:
    """Allocate zeros for matrices that begin at multiples of `_ALIGNED` bytes, shape [k, rows, cols]."""
    count, rows, cols = shape
    a_few = _ALIGNED // dtype.itemsize
    flat: RealArray = np.zeros((count, -(-rows * cols // a_few) * a_few), dtype)
    return flat[:, : rows * cols].reshape(shape)
