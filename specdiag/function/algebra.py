"""Gram matrices, their lowest eigenvalues and largest singular values, in float64 on the CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import scipy.linalg

from specdiag.function.arrays import Array, home, is_numpy, swapped

_eigh = cast("Callable[..., tuple[Array, Array]]", scipy.linalg.eigh)


class Algebra:
    """The products and decompositions that alarms take, where their matrices lie."""

    def __init__(self, device: str = "cpu") -> None:
        """Choose the place.

        Args:
            device: a torch device that is there; MPS has no float64, and leaves all to the CPU.
        """
        self.device = home(device)

    def gram(self, matrix: Array) -> Array:
        """Compute W W'.

        Args:
            matrix: shape [n, m].
        """
        return matrix @ matrix.T

    def lowest(self, gram: Array, n: int) -> tuple[Array, Array]:
        """Compute the lowest eigenvalues of a symmetric matrix, ascending, and their vectors, as NumPy's.

        Args:
            gram: shape [d, d].
            n: number of pairs, at most d.

        Returns:
            Shapes [n] and [d, n].
        """
        if is_numpy(gram):
            return _eigh(gram, subset_by_index=(0, n - 1), check_finite=False)
        import torch

        values, vectors = torch.linalg.eigh(cast("torch.Tensor", gram))
        return values[:n].cpu().numpy(), vectors[:, :n].cpu().numpy()

    def largest(self, stack: Array) -> Array:
        """Compute the largest singular value of each matrix of a stack.

        Args:
            stack: shape [..., n, m].

        Returns:
            Shape [...].
        """
        wide = stack if stack.shape[-2] <= stack.shape[-1] else swapped(stack)
        squares = wide @ swapped(wide)
        if is_numpy(squares):
            top = np.linalg.eigvalsh(squares)[..., -1]
        else:
            import torch

            top = cast("Array", torch.linalg.eigvalsh(cast("torch.Tensor", squares))[..., -1])
        return top.clip(min=0) ** 0.5
