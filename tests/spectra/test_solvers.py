"""The library that solves an eigenproblem follows from a table, and is part of what numbers depend on."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from specdiag.resources import blas_kernels, openblas_kernel, processor_vendor
from specdiag.spectra import solvers
from specdiag.spectra.eigenvalues import spectrum
from specdiag.spectra.float_types import FLOAT_TYPES


def test_a_processor_of_the_table_has_its_row_and_another_one_the_default():
    assert solvers.find("GenuineIntel", "SkylakeX").float64 < solvers.find("AuthenticAMD", "SkylakeX").float64
    unknown = solvers.find("GenuineIntel", "Nehalem")
    assert unknown == solvers.find("", "Haswell")
    assert unknown not in solvers.CROSSINGS


def test_without_openblas_or_without_mkl_scipy_solves_all(monkeypatch):
    assert solvers.find("GenuineIntel", None).float64 == solvers.NEVER
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert solvers.crossing.__wrapped__().float32 == solvers.NEVER


def test_rows_are_unique_and_tell_their_origin():
    assert len({(row.vendor, row.kernel) for row in solvers.CROSSINGS}) == len(solvers.CROSSINGS)
    assert all(row.origin for row in solvers.CROSSINGS)


def test_the_kernel_is_the_one_that_the_kept_results_know():
    kernel = openblas_kernel()
    assert kernel is None or any(name.endswith(f"openblas {kernel}") for name in blas_kernels())
    assert processor_vendor() in " ".join(blas_kernels())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_size_decides_who_solves(monkeypatch, dtype):
    asked = []
    monkeypatch.setattr(
        "specdiag.spectra.eigenvalues.torch_eigvalsh", lambda gram: asked.append(len(gram)) or eigen(gram)
    )
    row = solvers.Crossing("", "", 64, 80, "here")
    monkeypatch.setattr(solvers, "crossing", lambda: row)
    for n in (63, 64, 79, 80):
        spectrum(np.random.default_rng(n).standard_normal((1, n, 90)), FLOAT_TYPES["F64"], dtype=dtype)
    assert asked == ([80] if dtype == "float32" else [64, 79, 80])


def eigen(gram):
    """Eigenvalues by NumPy of the triangle that is filled."""
    return np.linalg.eigvalsh(gram, UPLO="L" if gram.dtype == np.float32 else "U")


def test_the_choice_is_part_of_what_results_are_kept_by(monkeypatch):
    before = solvers.kernels()
    monkeypatch.setattr(solvers, "crossing", lambda: solvers.Crossing("", "", 17, 17, "here"))
    assert solvers.kernels() != before
