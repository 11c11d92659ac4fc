"""The library that solves a symmetric eigenproblem: SciPy's OpenBLAS, or the BLAS that torch brings (MKL on x86).

The table says from which size on the second is faster. Nothing is timed at run time: a machine gives the same bits each
time. `python benchmarks/solvers.py` measures both, prints a row for this machine and what the table loses here.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Literal, NamedTuple

from specdiag.resources import blas_kernels, openblas_kernel, processor_vendor

NEVER = 1 << 30


class Crossing(NamedTuple):
    """Sizes from which torch's solver is faster, on one kind of processor.

    Attributes:
        vendor: of the processor, as it names itself.
        kernel: that OpenBLAS chooses there.
        float64: smallest size in float64.
        float32: smallest size in float32.
        origin: where it was measured.
    """

    vendor: str
    kernel: str
    float64: int
    float32: int
    origin: str


CROSSINGS = (
    Crossing("AuthenticAMD", "Haswell", 2250, 2900, "AMD EPYC, SciPy 1.16, torch 2.13, 2026-11-29"),
    Crossing("AuthenticAMD", "Zen", 2250, 2900, "that of Haswell, whose code it shares for the most part"),
    Crossing("AuthenticAMD", "SkylakeX", 3500, 3200, "AMD EPYC with AVX-512, SciPy 1.16, torch 2.13, 2026-11-29"),
    Crossing("AuthenticAMD", "Cooperlake", 3500, 3200, "that of SkylakeX"),
    Crossing("GenuineIntel", "SkylakeX", 1200, 1200, "Intel with AVX-512: 420 ms and 782 ms at 2048, crossing below"),
)
_OTHER = Crossing("", "", 2200, 2200, "an AMD processor, before this table")
_NO_MKL = Crossing("", "", NEVER, NEVER, "torch has no MKL there")
_NO_OPENBLAS = Crossing("", "", NEVER, NEVER, "SciPy has another BLAS, such as MKL itself")


def torch_solves(n: int, dtype: Literal["float32", "float64"]) -> bool:
    """Tell whether torch's BLAS solves matrices of this size.

    Args:
        n: rows of the symmetric matrix.
        dtype: the arithmetic.
    """
    found = crossing()
    return n >= (found.float32 if dtype == "float32" else found.float64)


@cache
def crossing() -> Crossing:
    """Look up this machine. Takes 4 ms; imports no torch."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return _NO_MKL
    return find(processor_vendor(), openblas_kernel())


def find(vendor: str, kernel: str | None) -> Crossing:
    """Look up a processor with MKL in torch.

    Args:
        vendor: of the processor.
        kernel: that OpenBLAS chose; None where SciPy has another BLAS, which then solves all.
    """
    if kernel is None:
        return _NO_OPENBLAS
    return next((row for row in CROSSINGS if (row.vendor, row.kernel) == (vendor, kernel)), _OTHER)


def kernels() -> tuple[str, ...]:
    """List everything of this machine on which the last bits of a number depend: BLAS kernels, processor, solvers."""
    return (*blas_kernels(), _described())


def _described() -> str:
    row = crossing()
    sizes = ", ".join(f"{name} from {size}" for name, size in (("float32", row.float32), ("float64", row.float64)))
    return "solved by SciPy" if row.float64 == NEVER else f"solved by SciPy, by torch in {sizes}"
