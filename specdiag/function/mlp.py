"""An MLP by what it computes: the gate, and down times up, which no scale or order of its neurons changes."""

from __future__ import annotations

from specdiag.function.arrays import Array, falling, nonzero, norms
from specdiag.function.decompositions import triangle


def du_core(up: Array, down: Array, *, scaled: bool = False) -> Array:
    """Compute a matrix with the singular values of down times up.

    Args:
        up: of a gated MLP, the norm in front folded in, shape [m, d].
        down: shape [d, m].
        scaled: divide by its Frobenius norm, as a norm behind the MLP does.

    Returns:
        Shape [n, n], n the smaller of m and d.
    """
    m, d = up.shape
    core = triangle(down) @ triangle(up.T).T if m < d else down @ up
    return core / nonzero((core * core).sum(axis=(0, 1), keepdims=True) ** 0.5) if scaled else core


def homogeneous(up: Array, down: Array, power: int) -> Array:
    """Scale down so that its product with up stays the same where up times s and down times s^-power compute the same.

    Args:
        up: the norm in front folded in, shape [m, d].
        down: shape [d, m].
        power: of `Mlp`.
    """
    return down if power == 1 else down * norms(up, 1) ** (power - 1)


def strengths(up: Array, down: Array) -> Array:
    """Compute |down_i||up_i| of each neuron of a gated MLP, the largest first, shape [m].

    Args:
        up: the norm in front folded in, shape [m, d].
        down: shape [d, m].
    """
    return falling(norms(down, 0) * norms(up, 1))[0]


def centred_router(router: Array) -> Array:
    """Take from each row of a router the mean of all rows, which a softmax does not see.

    Args:
        router: the norm in front folded in, shape [experts, d].
    """
    return router - router.mean(axis=0)
