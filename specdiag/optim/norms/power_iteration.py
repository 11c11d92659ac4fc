"""Spectral norms of matrices that change slowly: power iteration that continues from the last vector.

v (unit) of the smaller side; u = W v/|W v|; z = W^T u; the norm is |z|, and v becomes z/|z|. |z| never exceeds the
largest singular value, and on a matrix that stands still its error falls by (sigma_2/sigma_1)^4 a round. The released
ScionC adds 1e-8 to each divisor, and a matrix that is zero once leaves it with a zero v for ever; here v is drawn anew.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping

import torch

from specdiag.files import Table
from specdiag.optim.norms.step_parts import to_numbers

_FIRST = 10
"""Rounds for a vector that was just drawn at random."""


class PowerIteration:
    """Power iteration with a vector for each matrix, kept from call to call and in checkpoints.

    Example:
        >>> powers = PowerIteration()
        >>> round(powers.norms({"w": torch.diag(torch.tensor([2.0, 1.0])).unsqueeze(0)})["w"], 2)
        2.0
    """

    def __init__(self, rounds: int = 2) -> None:
        """Start without vectors.

        Args:
            rounds: of each call; a vector that was just drawn gets ten.
        """
        self._rounds = rounds
        self._vectors: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def norms(self, matrices: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Estimate the spectral norm of each matrix from below.

        Args:
            matrices: stacks of shape [s, rows, cols], by names that stay the same from call to call.

        Returns:
            The largest norm of each stack, by name; not finite where the stack is not.
        """
        ranges: list[torch.Tensor] = []
        for name, matrix in matrices.items():
            work = matrix if matrix.dtype == torch.float64 else matrix.float()
            work = work if work.shape[1] >= work.shape[2] else work.mT
            last = self._vectors.get(name)
            vector = (_draw(name, work) if last is None else last).to(work)
            norm = vector.new_zeros(len(vector))
            for _ in range(_FIRST if last is None else self._rounds):
                norm, vector = power_step(work, vector)
            self._vectors[name] = vector
            ranges.append(torch.stack((norm.min(), norm.max())))
        extremes = to_numbers(ranges)
        for name, (least, most) in zip(matrices, extremes, strict=True):
            if not (least > 0 and math.isfinite(most)):
                del self._vectors[name]
        return {name: most for name, (_, most) in zip(matrices, extremes, strict=True)}

    def state_dict(self) -> Table:
        """Return the vectors, exact to the bit. They can be written as JSON."""
        return {
            name: {
                "shape": list(v.shape[:2]),
                "dtype": "float64" if v.dtype == torch.float64 else "float32",
                "data": base64.b64encode(v.cpu().contiguous().numpy().tobytes()).decode(),
            }
            for name, v in self._vectors.items()
        }

    def load_state_dict(self, state: Table) -> None:
        """Continue from saved vectors; a matrix that has none, or of another shape, starts from a new one."""
        self._vectors = {}
        for name, saved in state.items():
            data = bytearray(base64.b64decode(saved["data"]))
            vector = torch.frombuffer(data, dtype=getattr(torch, saved["dtype"]))
            self._vectors[name] = vector.reshape(*saved["shape"], 1)

    def keep(self, shapes: Mapping[str, tuple[int, int, int]]) -> None:
        """Drop the vectors that do not fit a matrix of their name.

        Args:
            shapes: [s, rows, cols] of each matrix, by name.
        """
        fitting = {name: (s, min(rows, cols)) for name, (s, rows, cols) in shapes.items()}
        self._vectors = {n: v for n, v in self._vectors.items() if fitting.get(n) == tuple(v.shape[:2])}


def power_step(matrix: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one round of power iteration on a stack of matrices.

    Args:
        matrix: shape [s, rows, cols].
        vector: of unit length, shape [s, cols, 1].

    Returns:
        The norms so far, shape [s], and the next vectors, shape [s, cols, 1].
    """
    image = matrix @ vector
    back = matrix.mT @ _unit(image)[0]
    vector, norm = _unit(back)
    return norm[:, 0, 0], vector


def _unit(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale vectors to unit length, but leave zero vectors; return them with their lengths."""
    norm = torch.linalg.vector_norm(vector, dim=1, keepdim=True)
    return vector / norm.clamp_min(torch.finfo(vector.dtype).tiny), norm


def _draw(name: str, matrix: torch.Tensor) -> torch.Tensor:
    """Draw random vectors for a stack [s, rows, cols], the same on every rank and device."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return _unit(torch.randn(matrix.shape[0], matrix.shape[2], 1, generator=generator))[0]
