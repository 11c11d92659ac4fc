"""Figures of attention heads while they train: the bound of their scores and the stable rank of QK, from Gram matrices.

Q Q' and K K' of a head are h x h, and hold all that is needed: |Q'K|_F^2 = tr(G_q G_k), sigma_max(Q'K)^2 the largest
eigenvalue of G_q G_k. That eigenvalue is bounded from above by (tr M^p)^(1/p), p = 1024 by ten squarings, at most
h^(1/p) too large: .4 % for heads of 64, and .2 % in a singular value. So a bound stays one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdiag.architecture.wiring import Rope

_SQUARINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Queries and keys of an attention, what stands in front of them folded in.

    Attributes:
        q: shape [H, h, d].
        k: shape [groups, h, d]; each group serves H / groups heads.
        q_bias: shape [H, h]; zeros without one.
        k_bias: shape [groups, h]; zeros but in rows that positions rotate, for elsewhere it changes no output.
        rope: how rotary planes lie; None without rotary positions.
        n_rotated: rows of a head that are rotated, the first ones.
    """

    q: torch.Tensor
    k: torch.Tensor
    q_bias: torch.Tensor
    k_bias: torch.Tensor
    rope: Rope | None = None
    n_rotated: int = 0


def qk_stable_ranks(heads: Heads, gains: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Compute |Q'K|_F^2 / sigma_max(Q'K)^2 of each head, biases as a further column.

    Args:
        heads: queries and keys.
        gains: of the norms of queries and keys, of a head or of all; None without them.

    Returns:
        Shape [H], too small by .4 % at most.
    """
    q, k = _gram(heads.q), _gram(heads.k)
    q, k = q + _outer(heads.q_bias.to(q)), k + _outer(heads.k_bias.to(k))
    if gains is not None:
        q, k = (g * _outer(gain.to(g).reshape(-1, g.shape[-1])) for g, gain in zip((q, k), gains, strict=True))
    product = q @ _for_each_head(k, len(q))
    return _trace(product) / top_eigenvalue(product)


def score_bounds(heads: Heads, scale: float) -> torch.Tensor:
    """Bound the scores of each head at all positions, as `specdiag.function.scores.bounds_everywhere`.

    Rotary planes are in balance. Rows beside them count as one plane here, which can make the bound larger than there.

    Args:
        heads: queries and keys.
        scale: factor of the scores, 1/sqrt(h) in most models.

    Returns:
        Shape [H].
    """
    n, head_dim, width = heads.q.shape
    q, k = _gram(heads.q), _gram(heads.k)
    b, c = heads.q_bias.to(q), heads.k_bias.to(k)
    if not heads.n_rotated:
        keys = _for_each_head(k, n)
        inner = top_eigenvalue(q @ keys).sqrt()
        with_bias = (b[:, None] @ keys @ b[:, :, None])[:, 0, 0].clamp_min(0).sqrt()
        return scale * (width * inner + width**0.5 * with_bias)
    of_q = (q.diagonal(dim1=1, dim2=2) + b**2).reshape(len(k), -1, head_dim).sum(dim=1)
    of_k = k.diagonal(dim1=1, dim2=2) + c**2
    ratio = _plane_sums(of_k, heads) / _plane_sums(of_q, heads).clamp_min(torch.finfo(q.dtype).tiny)
    lives = ratio > 0
    factor = torch.where(lives, ratio, torch.ones_like(ratio)) ** 0.25
    q_factor, k_factor = _for_each_head(factor, n), 1 / factor
    sides = ((q, b, q_factor), (k, c, k_factor))
    reaches = [
        width**0.5 * top_eigenvalue(gram * _outer(f)).sqrt() + torch.linalg.vector_norm(bias * f, dim=1)
        for gram, bias, f in sides
    ]
    return scale * reaches[0] * _for_each_head(reaches[1], n)


def top_eigenvalue(matrices: torch.Tensor) -> torch.Tensor:
    """Bound the largest eigenvalue of matrices whose eigenvalues are not negative, by (tr M^1024)^(1/1024).

    Args:
        matrices: shape [..., n, n].

    Returns:
        Shape [...], at most n^(1/1024) times the eigenvalue.
    """
    tiny = torch.finfo(matrices.dtype).tiny
    logarithm = matrices.new_zeros(matrices.shape[:-2])
    for i in range(_SQUARINGS):
        size = torch.linalg.matrix_norm(matrices).clamp_min(tiny)
        logarithm = logarithm + size.log() / 2**i
        scaled = matrices / size[..., None, None]
        matrices = scaled @ scaled
    return (logarithm + _trace(matrices).clamp_min(tiny).log() / 2**_SQUARINGS).exp()


def _gram(side: torch.Tensor) -> torch.Tensor:
    """W W' of each head, in float64 where the device has it: the products that follow lose digits."""
    work = side if side.dtype == torch.float64 else side.float()
    return (work @ work.mT).to(_wide(side))


def _wide(side: torch.Tensor) -> torch.dtype:
    return torch.float32 if side.device.type == "mps" else torch.float64


def _plane_sums(squares: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Sum squared lengths of rows over the rows of their plane, shape [groups, h]."""
    rotated, rest = squares[:, : heads.n_rotated], squares[:, heads.n_rotated :]
    if heads.rope == "half":
        sums = rotated.reshape(len(squares), 2, -1).sum(dim=1).repeat(1, 2)
    else:
        sums = rotated.reshape(len(squares), -1, 2).sum(dim=2).repeat_interleave(2, dim=1)
    return torch.cat([sums, rest.sum(dim=1, keepdim=True).expand_as(rest)], dim=1)


def _for_each_head(of_groups: torch.Tensor, heads: int) -> torch.Tensor:
    return of_groups.repeat_interleave(heads // len(of_groups), dim=0)


def _outer(factors: torch.Tensor) -> torch.Tensor:
    return factors[:, :, None] * factors[:, None, :]


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
