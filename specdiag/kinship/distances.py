"""Distances between the blocks of two models: heads and experts are matched, for their order is free.

The distance of two spectra is |d ln sigma| of each pair of values; that of two layers its median over matched heads.
A factor of the whole residual stream shifts all values of OV and DU alike and is taken out first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specdiag.function.arrays import Array
from specdiag.kinship.spectra import BlockSpectra, logarithms

HEAD_FLOOR, MLP_FLOOR = 1e-6, 1e-4
"""Shares of the largest singular value below which a smaller one counts as that: rounding decides there."""
_AT_ONCE = 1 << 22
"""Values of a table of differences that is held at once."""

HeadPairs = tuple[NDArray[np.intp], NDArray[np.intp]]


class LayerDistance(NamedTuple):
    """Distances of two layers.

    Attributes:
        attention: median |d ln sigma| of QK and OV over matched heads.
        mlp: the same over the spectra of matched experts, or of the MLP; None where there are none alike.
        worst: the largest median of a single spectrum.
    """

    attention: float
    mlp: float | None
    worst: float


class Logs(NamedTuple):
    """Logarithms of the spectra of a block."""

    qk: Array
    ov: Array
    mlps: tuple[Mapping[str, Array], ...]

    @classmethod
    def of(cls, block: BlockSpectra, scale: float = 0.0) -> Logs:
        """Take logarithms.

        Args:
            block: a block.
            scale: logarithm of the factor of the stream that is taken out of OV and DU.
        """
        return cls(
            logarithms(block.qk, HEAD_FLOOR),
            logarithms(block.ov, HEAD_FLOOR) - scale,
            tuple(
                {role: logarithms(v, MLP_FLOOR) - (scale if role in ("du", "down") else 0.0) for role, v in mlp.items()}
                for mlp in block.mlps
            ),
        )


def match_heads(a: Logs, b: Logs) -> HeadPairs:
    """Pair the heads of two layers so that their spectra differ least in the sum.

    Args:
        a: a layer.
        b: another; where it has more heads or fewer, some are left over.

    Returns:
        Indices of heads of a, and those of b beside them.
    """
    from scipy.optimize import linear_sum_assignment

    first, second = (np.concatenate([side.qk, side.ov], axis=1) for side in (a, b))
    rows, cols = linear_sum_assignment(_differences(first, second))
    return rows, cols


def attention_distance(a: Logs, b: Logs) -> float:
    """Compute the median |d ln sigma| of QK and OV over matched heads.

    Args:
        a: a layer.
        b: another.
    """
    return float(np.median(np.concatenate(_heads(a, b))))


def layer_distance(a: Logs, b: Logs) -> LayerDistance:
    """Compute the distances of two layers.

    Args:
        a: a layer.
        b: another.
    """
    heads, mlp = _heads(a, b), _experts(a, b)
    worst = max(float(np.median(kind, axis=1).max()) for kind in (*heads, *mlp))
    middle = float(np.median(np.concatenate(mlp, axis=1))) if mlp else None
    return LayerDistance(float(np.median(np.concatenate(heads))), middle, worst)


def _heads(a: Logs, b: Logs) -> list[Array]:
    """Compute |d ln sigma| of QK and of OV of matched heads, shape [H, n] each."""
    rows, cols = match_heads(a, b)
    return [np.abs(a.qk[rows] - b.qk[cols]), np.abs(a.ov[rows] - b.ov[cols])]


def _experts(a: Logs, b: Logs) -> list[Array]:
    """Compute |d ln sigma| of each kind of spectrum of matched experts, shape [experts, n] each."""
    roles = [r for r in (a.mlps[0] if a.mlps else ()) if b.mlps and _is_alike(a.mlps[0], b.mlps[0], r)]
    if not roles:
        return []
    from scipy.optimize import linear_sum_assignment

    first, second = ([np.stack([m[r] for m in side.mlps]) for r in roles] for side in (a, b))
    rows, cols = linear_sum_assignment(_differences(np.concatenate(first, axis=1), np.concatenate(second, axis=1)))
    return [np.abs(x[rows] - y[cols]) for x, y in zip(first, second, strict=True)]


def _is_alike(a: Mapping[str, Array], b: Mapping[str, Array], role: str) -> bool:
    return role in b and a[role].shape == b[role].shape


def stream_scale(pairs: Sequence[tuple[BlockSpectra, BlockSpectra]]) -> float:
    """Estimate the logarithm of the factor of the residual stream of the second model over that of the first.

    It is the median signed difference of ln sigma of OV over matched heads; 0 where no factor is free.

    Args:
        pairs: layers side by side.
    """
    if not all(a.scales and b.scales for a, b in pairs):
        return 0.0
    sides = ([logarithms(pair[i].ov, HEAD_FLOOR) for pair in pairs] for i in (0, 1))
    first, second = (float(np.median(np.concatenate([v.ravel() for v in side]))) for side in sides)
    signed: list[Array] = []
    for a, b in pairs:
        of_a, of_b = Logs.of(a), Logs.of(b, second - first)
        rows, cols = match_heads(of_a, of_b)
        signed.append((of_b.ov[cols] - of_a.ov[rows]).ravel())
    return second - first + float(np.median(np.concatenate(signed)))


def _differences(a: Array, b: Array) -> Array:
    """Mean |difference| of each row of one with each row of the other, shape [n, m]."""
    step = max(1, _AT_ONCE // max(1, b.size))
    return np.concatenate([np.abs(a[i : i + step, None] - b[None]).mean(axis=-1) for i in range(0, len(a), step)])
