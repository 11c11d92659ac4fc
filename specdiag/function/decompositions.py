"""Decompositions of stacks of matrices, NumPy's or torch's (`arrays`): triangles, orthogonal factors, singular values.

R of a tall matrix is the Cholesky factor of its Gram matrix, several times faster than by QR, where that is as good:
with columns scaled to norm 1, singular values of R are off by a factor of at most 1 + c u kappa^2/2, kappa the
condition, u the unit roundoff and c a modest constant (Demmel and Veselic 1992, SIAM J. Matrix Anal. Appl. 13, on
scaled positive definite matrices).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from specdiag.function.arrays import Array, as_array, as_tensor, is_numpy, swapped

_LOST = 1e-11
"""Largest u kappa^2 that is let pass; |R||R^-1|, by Frobenius norms, stands for kappa and is no smaller."""


class _Factor(NamedTuple):
    """R of each matrix, upper triangular, and its inverse."""

    r: Array
    inverse: Array


def triangle(tall: Array) -> Array:
    """Compute R of the QR decomposition of each matrix, but for the signs of its rows.

    Args:
        tall: shape [..., n, m].

    Returns:
        Shape [..., min(n, m), m].
    """
    if is_numpy(tall):
        found = _by_cholesky(tall)
        return np.asarray(np.linalg.qr(tall, mode="r")) if found is None else found.r
    import torch

    return as_array(torch.linalg.qr(as_tensor(tall), mode="r").R)


def orthogonal(tall: Array) -> tuple[Array, Array]:
    """Compute Q and R of each matrix.

    Args:
        tall: shape [..., n, m].
    """
    if is_numpy(tall):
        found = _by_cholesky(tall)
        if found is not None:
            return tall @ found.inverse, found.r
        q, r = np.linalg.qr(tall)
        return q, r
    import torch

    found = torch.linalg.qr(as_tensor(tall))
    return as_array(found.Q), as_array(found.R)


def singular(matrices: Array) -> tuple[Array, Array, Array]:
    """Compute U, S and W' of each matrix U S W'.

    Args:
        matrices: shape [..., n, m].

    Raises:
        LinAlgError: numpy's; it does not converge, or a value is not finite.
    """
    if is_numpy(matrices):
        u, s, w = np.linalg.svd(matrices)
        return u, s, w
    import torch

    try:
        found = torch.linalg.svd(as_tensor(matrices))
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise np.linalg.LinAlgError(str(error)) from error
    return as_array(found.U), as_array(found.S), as_array(found.Vh)


def _by_cholesky(tall: Array) -> _Factor | None:
    """Factor the Gram matrices; None where one of them is too ill-conditioned, or the matrices are not tall."""
    n, m = tall.shape[-2:]
    if n < m:
        return None
    with np.errstate(all="ignore"):
        try:
            r = swapped(cast("Array", np.linalg.cholesky(swapped(tall) @ tall)))
            inverse = cast("Array", np.linalg.inv(r))
        except np.linalg.LinAlgError:
            return None
        lengths = np.linalg.norm(r, axis=-2)  # of the columns of `tall`
        scaled = np.linalg.norm(inverse * lengths[..., None], axis=(-2, -1))
        lost = cast("Array", np.finfo(np.float64).eps / 2 * m * scaled**2)
    return _Factor(r, inverse) if bool((lost <= _LOST).all()) else None
