"""Linear minimisation oracles of Scion (Pethick et al. 2025; arXiv 2512.08217, table 1): steps of unit norm.

Each is the direction of steepest ascent in the unit ball of its norm; a constrained optimizer subtracts it. Formulas
and defaults follow LIONS-EPFL/scion; `-plain` names are its `normalized=False`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from specdiag.errors import UsageError
from specdiag.optim.optimizers.orthogonal import Method, orthogonalize
from specdiag.text import checks

Lmo = Literal[
    "sign", "sign-plain",
    "spectral", "spectral-plain", "spectral-max", "spectral-conv",
    "row-norm", "row-norm-plain", "col-norm", "col-norm-plain",
    "bias-rms",
]  # fmt: skip
"""Names without the suffix `-plain` are normalised by width, so that one lr suits all sizes."""
LMOS: tuple[Lmo, ...] = get_args(Lmo)

_EPS = 1e-8


def auto(shape: torch.Size) -> Lmo:
    """Choose the LMO by shape, as the released Scion does: spectral for matrices, by kernels for convolutions.

    Args:
        shape: of the parameter.
    """
    return "bias-rms" if len(shape) < 2 else "spectral" if len(shape) == 2 else "spectral-conv"


def direction(kind: Lmo, tensor: torch.Tensor, method: Method = "polar-express") -> torch.Tensor:
    """Compute the step of unit norm along which a loss with this gradient rises fastest.

    Args:
        kind: name of the norm.
        tensor: gradient or momentum [d_out, d_in]; leading axes are a stack of matrices, but `spectral-conv` takes
            [c_out, c_in, *kernel], and `bias-rms` any shape. Transpose what is stored [in, out], such as an embedding.
        method: orthogonalisation of spectral steps.

    Returns:
        The same shape and type; zero where the tensor is zero.

    Raises:
        UsageError: the shape has too few axes for this norm.
    """
    check(kind, tensor.shape)
    if kind == "bias-rms":
        return tensor / (tensor.square().mean().sqrt() + _EPS)
    if kind == "spectral-conv":
        flat = orthogonalize(tensor.flatten(1), method)
        return flat.mul_(_conv_scale(tensor.shape)).view(tensor.shape)
    d_out, d_in = tensor.shape[-2:]
    match kind:
        case "sign":
            return tensor.sign() / d_in
        case "sign-plain":
            return tensor.sign()
        case "row-norm" | "row-norm-plain":
            rows = tensor / (torch.linalg.vector_norm(tensor, dim=-1, keepdim=True) + _EPS)
            return rows / math.sqrt(d_in) if kind == "row-norm" else rows
        case "col-norm" | "col-norm-plain":
            columns = tensor / (torch.linalg.vector_norm(tensor, dim=-2, keepdim=True) + _EPS)
            return columns * (math.sqrt(d_out) / (d_in if kind == "col-norm" else 1))
        case "spectral" | "spectral-plain" | "spectral-max":
            return orthogonalize(tensor, method) * _spectral_scale(kind, d_out, d_in)


def norm(kind: Lmo, tensor: torch.Tensor) -> float:
    """Compute the norm in whose unit ball `direction` steps. Over the radius it says how full a weight's ball is.

    Args:
        kind: name of the norm.
        tensor: of a shape as in `direction`.

    Returns:
        The exact norm; of a stack the largest.

    Raises:
        UsageError: the shape has too few axes for this norm.
    """
    check(kind, tensor.shape)
    wide = tensor.double()
    if kind == "bias-rms":
        return float(wide.square().mean().sqrt())
    if kind == "spectral-conv":
        return float(torch.linalg.matrix_norm(wide.flatten(1), 2)) / _conv_scale(tensor.shape)
    d_out, d_in = tensor.shape[-2:]
    match kind:
        case "sign" | "sign-plain":
            values, scale = wide.abs(), 1 / d_in if kind == "sign" else 1.0
        case "row-norm" | "row-norm-plain":
            values = torch.linalg.vector_norm(wide, dim=-1)
            scale = 1 / math.sqrt(d_in) if kind == "row-norm" else 1.0
        case "col-norm" | "col-norm-plain":
            values = torch.linalg.vector_norm(wide, dim=-2)
            scale = math.sqrt(d_out) / (d_in if kind == "col-norm" else 1)
        case "spectral" | "spectral-plain" | "spectral-max":
            values, scale = torch.linalg.matrix_norm(wide, 2), _spectral_scale(kind, d_out, d_in)
    return float(values.max()) / scale


def check(kind: Lmo, shape: torch.Size) -> None:
    """Check that a norm is defined for a shape.

    Args:
        kind: name of the norm.
        shape: of the parameter.

    Raises:
        UsageError: the name is unknown, or the shape has too few axes.
    """
    checks.one_of("lmo", kind, LMOS)
    axes = {"bias-rms": 0, "spectral-conv": 3}.get(kind, 2)
    if len(shape) < axes:
        raise UsageError(f"the {kind} LMO needs at least {axes} axes and a parameter has shape {tuple(shape)}")


def _spectral_scale(kind: Lmo, d_out: int, d_in: int) -> float:
    if kind == "spectral-plain":
        return math.sqrt(d_out)
    scale = math.sqrt(d_out / d_in)
    return max(1.0, scale) if kind == "spectral-max" else scale


def _conv_scale(shape: torch.Size) -> float:
    """sqrt(c_out/c_in) over the number of kernel positions, k^2 for a square kernel as in the released code."""
    return math.sqrt(shape[0] / shape[1]) / math.prod(shape[2:])
