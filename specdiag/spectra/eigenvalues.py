"""The ESD of one matrix on the CPU: float64 Gram of the smaller side, values-only eigensolver, fallbacks that say so.

Forming W^T W squares the condition number, which costs nothing here: the Hill tail reads the larger eigenvalues,
whose relative error is about u * lambda_max / lambda (u the unit roundoff). Where a result depends on eigenvalues
that the arithmetic cannot resolve, the exact route (singular values by QR and SVD in float64) takes over.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from specdiag.errors import ComputationError
from specdiag.spectra.blas import UPLO, eigvalsh, syrk
from specdiag.spectra.float_types import FloatType, RawArray, RealType
from specdiag.spectra.solvers import torch_solves

Method = Literal["gram", "svd"]
ComputeType = Literal["float32", "float64"]

ALPHA_TOLERANCE = 1e-4
"""Largest relative error of alpha from arithmetic that is let pass before a more exact route is taken."""

_ROUNDING = 8.0
"""Rounding moves the mean of ln(lambda/lambda_threshold) over a tail by at most

    _ROUNDING m^(1/4) u lambda_max/lambda_threshold, m the longer side.

Calibrated, not proven: in float32 against float64, on ten kinds of matrix from 64 x 64 to 3072 x 3072 and 256 x 25600
under three kernels of OpenBLAS, 9 was the most that was seen; in MKL, 53 at 3072, where 60 are allowed.
"""

_DQDS = 200.0
"""The same by singular values has _DQDS u sqrt(lambda_max/lambda_threshold) besides, at every size.

LAPACK's dqds iteration (xLASQ2) drops a coupling of 100 eps, eps = 2 u, so that one singular value may be off by
100 u sigma_max, and ln lambda by twice that. Nearly equal values come near: 96 u sigma_max was seen in float32.
"""

_NOISE = 16.0
"""Rounding of an eigenvalue near zero in units of u lambda_max. 3.1 was the most that was seen, in float32 against
float64 on bfloat16 and 4-bit weights (`tests/spectra/test_arithmetic.py`)."""

_BLOCK_BYTES = 4 << 20

UNIT_ROUNDOFF: Mapping[ComputeType, float] = {
    "float32": float(np.finfo(np.float32).eps) / 2,
    "float64": float(np.finfo(np.float64).eps) / 2,
}
_LEAST_NORM = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The ESD of one matrix, slices pooled.

    Attributes:
        eigenvalues: lambda = sigma(W)^2, float64, ascending, unnormalised.
        floor: eigenvalues at or below it are zero to the storage precision (`storage_floor`).
        n_zero: how many are; None where the arithmetic cannot tell.
        frobenius2: ||W||_F^2 summed from the values themselves.
        unit_roundoff: of the arithmetic that was used.
        method: `gram` or `svd`, the route that was taken in the end.
        dtype: `float32` or `float64`, likewise.
        longer_side: m, the number of products that an entry of the Gram matrix sums.
        slices: the eigenvalues of each matrix that is pooled, ascending, shape [s, n].
    """

    eigenvalues: NDArray[np.float64]
    floor: float
    n_zero: int | None
    frobenius2: float
    unit_roundoff: float
    method: Method
    dtype: ComputeType
    longer_side: int
    slices: NDArray[np.float64]

    def living(self, shape: tuple[int, int]) -> Spectrum:
        """Leave out the eigenvalues that dead rows and columns make zero.

        Args:
            shape: rows and columns that are alive, in either order.
        """
        n = min(shape)
        if n >= self.slices.shape[1]:
            return self if max(shape) == self.longer_side else replace(self, longer_side=max(shape))
        slices = self.slices[:, self.slices.shape[1] - n :]
        return replace(self, eigenvalues=np.sort(slices, axis=None), longer_side=max(shape), slices=slices)

    @property
    def noise(self) -> float:
        """The largest eigenvalue that rounding of the Gram matrix may make of a zero."""
        return _noise(self.eigenvalues, self.unit_roundoff)

    def rounding(self, threshold: float) -> float:
        """Bound e on what rounding does to the mean of ln(lambda/threshold) over the eigenvalues above `threshold`."""
        if self.eigenvalues[-1] <= 0:
            return 0.0
        conditioning = float(self.eigenvalues[-1]) / max(threshold, sys.float_info.min)
        factor = _ROUNDING * self.longer_side**0.25
        if self.method == "svd":
            # Singular values carry an absolute error in units of u sigma_max: the square root of the ratio.
            return (factor + _DQDS) * self.unit_roundoff * conditioning**0.5
        return factor * self.unit_roundoff * conditioning

    def alpha_error(self, alpha: float, threshold: float) -> float:
        """Bound on |d alpha| by rounding: (alpha - 1)^2 e / (1 - (alpha - 1) e), infinite where (alpha - 1) e >= 1.

        It follows from alpha - 1 = k/T, where the sum T of k logarithms is off by at most k e (`rounding`).

        Args:
            alpha: a tail exponent, infinite where all eigenvalues of the tail are equal.
            threshold: the eigenvalue at which its tail begins.
        """
        lost = (alpha - 1) * self.rounding(threshold)
        return (alpha - 1) * lost / (1 - lost) if lost < 1 else float("inf")

    def is_precise(self, alpha: float, threshold: float) -> bool:
        """True where rounding moves an exponent by no more than `ALPHA_TOLERANCE` of it."""
        return self.alpha_error(alpha, threshold) <= ALPHA_TOLERANCE * alpha < float("inf")


def spectrum(
    stack: RawArray, storage: FloatType, *, method: Method = "gram", dtype: ComputeType = "float64"
) -> Spectrum:
    """Eigenvalues of the smaller Gram side of one matrix.

    Args:
        stack: raw finite values, shape [s, rows, cols], in the storage type; eigenvalues of the s slices are pooled.
        storage: that type.
        method: `gram` (default) or `svd`. `svd` with float32 runs torch.linalg.svdvals on the matrix as it is
            stored, which is bit-compatible with the AlphaDecay reference.
        dtype: the arithmetic.

    Raises:
        ComputationError: if a solver does not converge, or the eigenvalues do not sum to ||W||_F^2.
    """
    solve = _gram_eigenvalues if method == "gram" else _svd_eigenvalues
    parts = [solve(w, storage, np.dtype(dtype)) for w in stack]
    slices = np.sort(np.array([p[0] for p in parts])).astype(np.float64)
    frobenius2 = float(sum(p[1] for p in parts))
    return assemble(slices, frobenius2, stack.shape, storage, method, dtype)


def assemble(
    slices: NDArray[np.float64],
    frobenius2: float,
    shape: tuple[int, ...],
    storage: FloatType,
    method: Method,
    dtype: ComputeType,
) -> Spectrum:
    """Check computed eigenvalues against ||W||_F^2 and say which of them are zero.

    Args:
        slices: eigenvalues of each slice, ascending, shape [s, n], as the solver gave them: negative ones are
            rounding and become 0 (in place).
        frobenius2: ||W||_F^2, all slices.
        shape: (s, rows, cols).
        storage: the stored type.
        method: how they were computed.
        dtype: in which arithmetic.

    Raises:
        ComputationError: if the eigenvalues do not sum to ||W||_F^2.
    """
    unit = UNIT_ROUNDOFF[dtype]
    check_trace(slices, frobenius2, unit)
    np.maximum(slices, 0.0, out=slices)
    eigenvalues = np.sort(slices, axis=None)
    floor = storage_floor(frobenius2 / shape[0], (shape[1], shape[2]), storage.eps)
    is_certain = method == "svd" or _tells_zeros(eigenvalues, floor, _noise(eigenvalues, unit), dtype)
    n_zero = int(np.count_nonzero(eigenvalues <= floor)) if is_certain else None
    return Spectrum(eigenvalues, floor, n_zero, frobenius2, unit, method, dtype, max(shape[1:]), slices)


def _noise(eigenvalues: NDArray[np.float64], unit: float) -> float:
    return _NOISE * unit * float(eigenvalues[-1])


def _tells_zeros(eigenvalues: NDArray[np.float64], floor: float, noise: float, dtype: ComputeType) -> bool:
    """Tell whether rounding of a Gram matrix leaves no doubt about which eigenvalues lie below the storage floor."""
    if dtype == "float32":
        return floor > noise and not bool((np.abs(eigenvalues - floor) <= noise).any())
    return floor >= noise or bool(eigenvalues[0] >= noise)


def pool(parts: list[Spectrum]) -> Spectrum:
    """Equal windows of one matrix, each with its spectrum, as one spectrum."""
    counts = [p.n_zero for p in parts if p.n_zero is not None]
    return Spectrum(
        eigenvalues=np.sort(np.concatenate([p.eigenvalues for p in parts])),
        floor=float(np.mean([p.floor for p in parts])),
        n_zero=sum(counts) if len(counts) == len(parts) else None,
        frobenius2=sum(p.frobenius2 for p in parts),
        unit_roundoff=max(p.unit_roundoff for p in parts),
        method=min(p.method for p in parts),
        dtype=min(p.dtype for p in parts),
        longer_side=max(p.longer_side for p in parts),
        slices=np.concatenate([p.slices for p in parts]),
    )


def exact(stack: RawArray, storage: FloatType) -> Spectrum:
    """The same by float64 singular values of the R factor of a blocked QR: nothing is squared, memory stays small."""
    values: list[RawArray] = []
    total = 0.0
    for w in stack:
        r: RawArray | None = None
        frobenius2 = 0.0
        for block in _blocks(w, storage, np.dtype(np.float64), 64 << 20):
            tall = block if w.shape[0] >= w.shape[1] else block.T
            r = np.asarray(np.linalg.qr(tall if r is None else np.vstack([r, tall]), mode="r"))
            frobenius2 += float(np.vdot(block, block))
        assert r is not None
        _check_range(frobenius2, w, storage)
        values.append(_svdvals(r) ** 2)
        total += frobenius2
    frobenius2 = total
    slices = np.sort(np.array(values))
    eigenvalues = np.sort(slices, axis=None)
    s, rows, cols = stack.shape
    unit = UNIT_ROUNDOFF["float64"]
    arithmetic = (max(rows, cols) * unit) ** 2 * float(eigenvalues[-1])
    floor = max(storage_floor(frobenius2 / s, (rows, cols), storage.eps), arithmetic)
    n_zero = int(np.count_nonzero(eigenvalues <= floor))
    return Spectrum(eigenvalues, floor, n_zero, frobenius2, unit, "svd", "float64", max(rows, cols), slices)


def storage_floor(frobenius2: float, shape: tuple[int, int], eps: float) -> float:
    """The eigenvalue that rounding to the storage type alone can make: sigma_tol^2.

    sigma_tol = 4u ||W||_F / sqrt(nm) (sqrt(n) + sqrt(m)) with u = eps/2: the edge of a random matrix whose entries
    are four roundoffs of a typical weight. A rule by max(n, m) eps sigma_max would call every bf16 matrix low-rank.
    """
    n, m = shape
    return 4 * eps**2 * frobenius2 / (n * m) * (n**0.5 + m**0.5) ** 2


def check_trace(eigenvalues: NDArray[np.float64], frobenius2: float, unit: float) -> None:
    """Raise ComputationError unless the eigenvalues sum to ||W||_F^2 within their arithmetic."""
    total = float(eigenvalues.sum())
    if abs(total - frobenius2) > 64 * unit * eigenvalues.size * max(frobenius2, _LEAST_NORM):
        raise ComputationError(f"the eigenvalues sum to {total:.9g}, but ||W||_F^2 is {frobenius2:.9g}")


def _gram_eigenvalues(w: RawArray, storage: FloatType, dtype: RealType) -> tuple[RawArray, float]:
    n = min(w.shape)
    tall = w.shape[0] >= w.shape[1]
    gram = np.zeros((n, n), dtype)
    for block in _blocks(w, storage, dtype, _BLOCK_BYTES):
        syrk(block, gram, tall=tall)
    frobenius2 = float(np.trace(gram, dtype=np.float64))
    _check_range(frobenius2, w, storage)
    by_torch = torch_solves(n, "float32" if dtype == np.float32 else "float64")
    return (torch_eigvalsh(gram) if by_torch else eigvalsh(gram)), frobenius2


def _check_range(frobenius2: float, w: RawArray, storage: FloatType) -> None:
    """Refuse squares that overflow, or vanish though `w` is not zero (one kernel position of a convolution may be)."""
    if frobenius2 == 0 and not any(block.any() for block in _blocks(w, storage, np.dtype(np.float64), _BLOCK_BYTES)):
        return
    if not 0 < frobenius2 < np.inf:
        raise ComputationError(
            f"the squares of the values leave the range of the arithmetic (they sum to {frobenius2})"
        )


def _blocks(w: RawArray, storage: FloatType, dtype: RealType, nbytes: int) -> Iterator[RawArray]:
    """`w` cut along its longer side, widened to `dtype` block by block: the whole is never held twice."""
    rows, cols = w.shape
    n = min(rows, cols)
    if storage.storage == dtype and w.strides[1] == w.itemsize:
        nbytes = w.nbytes
    step = max(n // 2, nbytes // (n * dtype.itemsize), 1)
    for start in range(0, max(rows, cols), step):
        block = w[start : start + step] if rows >= cols else w[:, start : start + step]
        needs_copy = storage.storage != dtype or block.strides[1] != block.itemsize
        yield storage.widen(block, dtype) if needs_copy else block


def torch_eigvalsh(gram: RawArray) -> RawArray:
    """Eigenvalues of a symmetric matrix by torch's BLAS, ascending.

    Args:
        gram: shape [n, n], C order, float32 or float64; only the triangle `UPLO` is read.
    """
    import torch

    in_c_order = "L" if UPLO[gram.dtype] == "U" else "U"
    return torch.linalg.eigvalsh(torch.from_numpy(gram), UPLO=in_c_order).numpy()


def _svd_eigenvalues(w: RawArray, storage: FloatType, dtype: RealType) -> tuple[RawArray, float]:
    values = storage.widen(w, dtype)
    frobenius2 = float(np.square(values, dtype=np.float64).sum())
    if dtype == np.float32:
        import torch

        sigma = torch.linalg.svdvals(torch.from_numpy(values))
        return torch.square(sigma).numpy(), frobenius2
    return _svdvals(values) ** 2, frobenius2


def _svdvals(values: RawArray) -> RawArray:
    try:
        return np.linalg.svd(values, compute_uv=False)
    except np.linalg.LinAlgError as error:
        raise ComputationError(f"the SVD of a {values.shape[0]} x {values.shape[1]} matrix failed: {error}") from error
