"""The three BLAS and LAPACK routines of the CPU engine, called without the GIL.

SciPy's own Python wrappers hold the GIL, so two threads of them run as one. Its public `cython_blas` and
`cython_lapack` capsules are plain function pointers; called through ctypes they release the GIL, and Python threads
with one BLAS thread each scale. `syrk` does half the work of a general product; values-only `syev` is tridiagonal
reduction and root-free QR, with no vectors to allocate.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg.cython_blas as cython_blas
import scipy.linalg.cython_lapack as cython_lapack

from specdiag.errors import ComputationError
from specdiag.spectra.float_types import RealArray

_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.restype, _capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

_SCALARS = {np.dtype(np.float32): ctypes.c_float, np.dtype(np.float64): ctypes.c_double}


def _routine(module: Any, name: str, n_arguments: int) -> Callable[..., None]:
    """The routine behind a capsule, every argument a pointer. The capsule's name is its C signature."""
    capsule = module.__pyx_capi__[name]
    signature: bytes = _capsule_name(capsule)
    if signature.count(b",") + 1 != n_arguments or b"int *" not in signature:
        raise ComputationError(
            f"SciPy's {name} has the signature {signature.decode()}, not the 32-bit LAPACK that specdiag calls; "
            "install a SciPy wheel from PyPI"
        )
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * n_arguments)(_capsule_pointer(capsule, signature))


_SYRK = {np.dtype(t): _routine(cython_blas, f"{p}syrk", 10) for t, p in ((np.float32, "s"), (np.float64, "d"))}
_SYEV = {np.dtype(t): _routine(cython_lapack, f"{p}syev", 9) for t, p in ((np.float32, "s"), (np.float64, "d"))}


UPLO = {np.dtype(np.float32): "U", np.dtype(np.float64): "L"}
"""Which triangle is filled and read, in Fortran's eyes: the faster one of OpenBLAS's reduction (float64: 8 %)."""

_FLOAT64_BLOCK = 16
"""Columns reduced at once in float64: less than LAPACK's own choice of 32 and faster up to 2048 (20 % there)."""


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _char(value: bytes) -> Any:
    return ctypes.byref(ctypes.c_char(value))


def syrk(block: RealArray, gram: RealArray, *, tall: bool) -> None:
    """Add the Gram matrix of one block to `gram`, in place; only the triangle `UPLO` is touched.

    Args:
        block: rows contiguous, float32 or float64. Shape [l, n] if `tall` (adds block^T block), else [n, l]
            (adds block block^T).
        gram: shape [n, n], C order, the same type.
        tall: which side is summed over.
    """
    n, length = gram.shape[0], block.shape[0] if tall else block.shape[1]
    real = _SCALARS[block.dtype]
    # A C-order block is its transpose in Fortran's eyes: [l, n] is an n x l matrix there.
    _SYRK[block.dtype](
        _char(UPLO[block.dtype].encode()), _char(b"N" if tall else b"T"), _int(n), _int(length), ctypes.byref(real(1)),
        block.ctypes.data, _int(block.strides[0] // block.itemsize), ctypes.byref(real(1)), gram.ctypes.data, _int(n),
    )  # fmt: skip


def eigvalsh(gram: RealArray) -> RealArray:
    """Eigenvalues of a symmetric matrix, ascending; destroys `gram`, of which only the triangle `UPLO` is read.

    Args:
        gram: shape [n, n], C order, float32 or float64.

    Raises:
        ComputationError: if the QR iteration does not converge.
    """
    n = gram.shape[0]
    values, info = np.empty(n, gram.dtype), ctypes.c_int(0)

    def call(work: Any, length: int) -> None:
        _SYEV[gram.dtype](
            _char(b"N"), _char(UPLO[gram.dtype].encode()), _int(n), gram.ctypes.data, _int(n), values.ctypes.data,
            work, _int(length), ctypes.byref(info),
        )  # fmt: skip

    # With the least workspace the reduction is unblocked and 1.4 times slower.
    length = (_FLOAT64_BLOCK + 2) * n
    if gram.dtype == np.float32:
        query = ctypes.c_float(0)
        call(ctypes.byref(query), -1)
        length = int(query.value)
    work = np.empty(max(length, 1), gram.dtype)
    call(work.ctypes.data, work.size)
    if info.value != 0:
        raise ComputationError(f"the symmetric eigensolver did not converge on a {n} x {n} matrix (info {info.value})")
    return values
