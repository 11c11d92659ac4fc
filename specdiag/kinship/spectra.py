"""Singular values of what each block computes: the figures by which models are held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from specdiag.function.arrays import Array

MlpSpectra = Mapping[str, Array]
"""Spectra of an MLP by role: gate and du, or up and down where neurons cannot be rescaled."""


class NotFiniteError(Exception):
    """A block computes with values that are infinite or NaN, so that it has no spectrum."""


@dataclass(frozen=True, slots=True)
class BlockSpectra:
    """The spectra of a block, each in descending order.

    Attributes:
        component: the piece of the model, None for its trunk; cross-attention is a piece of its own.
        layer: its index.
        qk: shape [H, n], of Q'K of each head.
        ov: shape [H, n], of O V of each head.
        mlps: of the MLP, or of each expert.
        scales: whether the scale of the residual stream is free here, which multiplies OV and DU.
    """

    component: str | None
    layer: int | None
    qk: Array
    ov: Array
    mlps: tuple[MlpSpectra, ...] = ()
    scales: bool = False


@dataclass(frozen=True, slots=True)
class Solver:
    """Singular values on a device, in float64; MPS has none, and leaves the work to the CPU.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
    """

    device: str = "cpu"

    def of_heads(self, cores: Array) -> Array:
        """Compute the singular values of small matrices.

        Args:
            cores: shape [H, n, n].

        Returns:
            Shape [H, n], descending.

        Raises:
            NotFiniteError: a value is infinite or NaN.
        """
        _require_finite(cores)
        if self._on_cpu:
            return np.asarray(np.linalg.svd(cores, compute_uv=False), dtype=np.float64)
        import torch

        return torch.linalg.svdvals(torch.from_numpy(cores).to(self.device)).cpu().numpy()

    def of_matrix(self, matrix: Array) -> Array:
        """Compute the singular values of a matrix from its smaller Gram matrix: right above 1e-6 of the largest.

        Args:
            matrix: shape [m, n].

        Returns:
            Shape [min(m, n)], descending.

        Raises:
            NotFiniteError: a value is infinite or NaN.
        """
        _require_finite(matrix)
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        if self._on_cpu:
            eigenvalues = np.linalg.eigvalsh(wide @ wide.T)
        else:
            import torch

            there = torch.from_numpy(np.ascontiguousarray(wide)).to(self.device)
            eigenvalues = torch.linalg.eigvalsh(there @ there.T).cpu().numpy()
        return np.sqrt(np.maximum(eigenvalues[::-1], 0))

    @property
    def _on_cpu(self) -> bool:
        return self.device in ("cpu", "mps")


def logarithms(sigma: Array, floor: float) -> Array:
    """Take logarithms of singular values, none smaller than a share of the largest.

    Args:
        sigma: shape [..., n].
        floor: the share.
    """
    largest = sigma.max(axis=-1, keepdims=True)
    return np.log(np.maximum(np.maximum(sigma, floor * largest), np.finfo(np.float64).tiny))


def _require_finite(values: Array) -> None:
    if not np.isfinite(values).all():
        raise NotFiniteError
