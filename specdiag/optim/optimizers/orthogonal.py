"""Orthogonalisation by odd polynomials of the singular values: matrix products only, batched, in low precision.

With A = X X^T a step is X <- a X + (b A + c A^2) X, which maps every singular value s to a s + b s^3 + c s^5 and leaves
the singular vectors alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from specdiag.errors import UsageError

Method = Literal["polar-express", "polar-express-modded", "newton-schulz"]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Iteration:
    """A published iteration.

    Attributes:
        triples: (a, b, c) of each step; the last is repeated.
        steps: usual number of steps.
        margin: the matrix is first divided by margin x Frobenius norm + eps, so that rounding cannot raise a singular
            value above 1, where the polynomials diverge.
        eps: keeps the zero matrix at zero.
    """

    triples: tuple[Triple, ...]
    steps: int
    margin: float
    eps: float


_NEWTON_SCHULZ = Iteration(((3.4445, -4.7750, 2.0315),), steps=5, margin=1.0, eps=1e-7)
"""Keller Jordan's Muon, torch.optim.Muon, LIONS-EPFL/scion. Does not converge: singular values end in 0.47 to 1.2."""

_POLAR_EXPRESS_RAW: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_SAFETY = 1.01
_POLAR_EXPRESS = Iteration(
    (*((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS_RAW), (1.875, -1.25, 0.375)),
    steps=5,
    margin=_SAFETY,
    eps=1e-8,
)
"""Amsel et al. (arXiv 2505.16932), their code: five steps end in 0.84 to 1.12 of [1e-3, 1], eight in 1."""

_POLAR_EXPRESS_MODDED = Iteration(
    (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    steps=5,
    margin=1.02,
    eps=1e-6,
)
"""The same method fitted again by modded-nanogpt and nanochat (5 steps, safety 0.02, cushion 2): other numbers."""

ITERATIONS: dict[Method, Iteration] = {
    "polar-express": _POLAR_EXPRESS,
    "polar-express-modded": _POLAR_EXPRESS_MODDED,
    "newton-schulz": _NEWTON_SCHULZ,
}


def orthogonalize(matrix: torch.Tensor, method: Method = "polar-express", steps: int | None = None) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T, the nearest semi-orthogonal matrix.

    Args:
        matrix: shape [..., rows, cols]. The computation is in bfloat16, as in the published codes, but in float64 for
            a float64 matrix.
        method: a name of `ITERATIONS`.
        steps: number of steps; None for the usual number.

    Returns:
        The same shape and type. Zero where the matrix is zero, NaN where it holds a NaN.

    Raises:
        UsageError: the method is unknown, or the tensor has fewer than two axes.
    """
    if method not in ITERATIONS:
        raise UsageError(f"unknown orthogonalisation '{method}'; choose from {', '.join(get_args(Method))}")
    if matrix.ndim < 2:
        raise UsageError(f"a tensor of shape {tuple(matrix.shape)} is no matrix and cannot be orthogonalised")
    iteration = ITERATIONS[method]
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    # Half types neither hold nor sum the squares of common gradients.
    x = x if matrix.dtype == torch.float64 else x.float()
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * iteration.margin + iteration.eps)
    x = iterate(x if matrix.dtype == torch.float64 else x.bfloat16(), method, steps)
    return (x.mT if matrix.shape[-2] > matrix.shape[-1] else x).to(matrix.dtype)


def iterate(x: torch.Tensor, method: Method, steps: int | None = None) -> torch.Tensor:
    """Run the iteration alone, without scaling.

    Args:
        x: wide matrices, shape [..., n, m] with n <= m, whose singular values lie in [0, 1].
        method: a name of `ITERATIONS`.
        steps: number of steps; None for the usual number.
    """
    iteration = ITERATIONS[method]
    for step in range(iteration.steps if steps is None else steps):
        a, b, c = iteration.triples[min(step, len(iteration.triples) - 1)]
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x
