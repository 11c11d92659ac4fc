"""Gram matrices, their lowest eigenvalues and largest singular values, in float64 on the CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import scipy.linalg

from specdiag.function.folding import Array

if TYPE_CHECKING:
    import torch

_eigh = cast("Callable[..., tuple[Array, Array]]", scipy.linalg.eigh)


class Algebra:
    """The products and decompositions that alarms take, where a device says.

    MPS has no float64: there, as without a device, the CPU computes.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Choose the place.

        Args:
            device: a torch device that is there.
        """
        self.device = device if device.startswith("cuda") else "cpu"

    def gram(self, matrix: Array) -> Array:
        """Compute W W'.

        Args:
            matrix: shape [n, m].
        """
        if self.device == "cpu":
            return matrix @ matrix.T
        values = self._to(matrix)
        return self._back(values @ values.mT)

    def lowest(self, gram: Array, n: int) -> tuple[Array, Array]:
        """Compute the lowest eigenvalues of a symmetric matrix, ascending, and their vectors.

        Args:
            gram: shape [d, d].
            n: number of pairs, at most d.

        Returns:
            Shapes [n] and [d, n].
        """
        if self.device == "cpu":
            return _eigh(gram, subset_by_index=(0, n - 1), check_finite=False)
        import torch

        values, vectors = torch.linalg.eigh(self._to(gram))
        return self._back(values[:n]), self._back(vectors[:, :n])

    def largest(self, stack: Array) -> Array:
        """Compute the largest singular value of each matrix of a stack.

        Args:
            stack: shape [..., n, m].

        Returns:
            Shape [...].
        """
        wide = stack if stack.shape[-2] <= stack.shape[-1] else np.swapaxes(stack, -1, -2)
        if self.device == "cpu":
            top = np.linalg.eigvalsh(wide @ np.swapaxes(wide, -1, -2))[..., -1]
        else:
            import torch

            values = self._to(wide)
            top = self._back(torch.linalg.eigvalsh(values @ values.mT)[..., -1])
        return np.sqrt(np.maximum(top, 0))

    def _to(self, values: Array) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _back(self, values: torch.Tensor) -> Array:
        return cast("Array", values.cpu().numpy())
