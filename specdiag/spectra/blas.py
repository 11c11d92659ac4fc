"""The three BLAS and LAPACK routines of the CPU engine, called without the GIL.

SciPy's own Python wrappers hold the GIL, so two threads of them run as one. Its public `cython_blas` and
`cython_lapack` capsules are plain function pointers; called through ctypes they release the GIL, and Python threads
with one BLAS thread each scale. `syrk` does half the work of a general product; values-only `syev` is tridiagonal
reduction and root-free QR, with no vectors to allocate.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
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


@lru_cache(maxsize=4096)
def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


@lru_cache
def _char(value: str) -> Any:
    return ctypes.byref(ctypes.c_char(value.encode()))


def syrk(block: RealArray, gram: RealArray, *, tall: bool) -> None:
    """Add the Gram matrix of one block to `gram`, in place; only the triangle `UPLO` is touched.

    Args:
        block: rows contiguous, float32 or float64. Shape [l, n] if `tall` (adds block^T block), else [n, l]
            (adds block block^T).
        gram: shape [n, n], C order, the same type.
        tall: which side is summed over.
    """
    syrk_each(block[None], gram[None], tall=tall)


def syrk_each(blocks: RealArray, grams: RealArray, *, tall: bool) -> None:
    """Do the same for each block of a stack, one after the other: the same bits.

    Args:
        blocks: shape [k, l, n] if `tall`, else [k, n, l]; rows contiguous.
        grams: shape [k, n, n], each in C order.
        tall: which side is summed over.
    """
    n, length = grams.shape[1], blocks.shape[1] if tall else blocks.shape[2]
    run, one = _SYRK[blocks.dtype], ctypes.byref(_SCALARS[blocks.dtype](1))
    before = _char(UPLO[blocks.dtype]), _char("N" if tall else "T"), _int(n), _int(length), one
    # A C-order block is its transpose in Fortran's eyes: [l, n] is an n x l matrix there.
    leading, beside, block, gram = _int(blocks.strides[1] // blocks.itemsize), _int(n), *_starts(blocks, grams)
    for _ in range(len(blocks)):
        run(*before, block, leading, one, gram, beside)
        block += blocks.strides[0]
        gram += grams.strides[0]


def eigvalsh(gram: RealArray) -> RealArray:
    """Eigenvalues of a symmetric matrix, ascending; destroys `gram`, of which only the triangle `UPLO` is read.

    Args:
        gram: shape [n, n], C order, float32 or float64.

    Raises:
        ComputationError: if the QR iteration does not converge.
    """
    return eigvalsh_each(gram[None])[0]


def eigvalsh_each(grams: RealArray) -> RealArray:
    """Do the same for each matrix of a stack, one after the other: the same bits.

    Args:
        grams: shape [k, n, n], each in C order, float32 or float64.

    Returns:
        Shape [k, n].

    Raises:
        ComputationError: if the QR iteration does not converge.
    """
    n, dtype = grams.shape[1], grams.dtype
    values, info = np.empty((len(grams), n), dtype), ctypes.c_int(0)
    run, failed = _SYEV[dtype], ctypes.byref(info)
    before, size = (_char("N"), _char(UPLO[dtype]), _int(n)), _int(n)
    gram, found = _starts(grams, values)
    # With the least workspace the reduction is unblocked and 1.4 times slower.
    length = (_FLOAT64_BLOCK + 2) * n
    if dtype == np.float32:
        query = ctypes.c_float(0)
        run(*before, gram, size, found, ctypes.byref(query), _int(-1), failed)
        length = int(query.value)
    work = np.empty(max(length, 1), dtype)
    space, room = work.ctypes.data, _int(work.size)
    for _ in range(len(grams)):
        run(*before, gram, size, found, space, room, failed)
        if info.value != 0:
            raise ComputationError(
                f"the symmetric eigensolver did not converge on a {n} x {n} matrix (info {info.value})"
            )
        gram += grams.strides[0]
        found += values.strides[0]
    return values


def _starts(*stacks: RealArray) -> tuple[int, ...]:
    return tuple(stack.ctypes.data for stack in stacks)
