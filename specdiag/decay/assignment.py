"""Which multiple of the base weight decay each module gets, from its exponent (AlphaDecay, arXiv 2506.14562).

Every rule takes the exponents of the participating modules, shape [n], and gives their ratios, shape [n]. A module
without a finite exponent gets ratio 1 and does not move the others. Larger alpha (lighter tail) means larger decay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ratios = NDArray[np.float64]


def linear(alphas: Ratios, s1: float = 0.67, s2: float = 3.0) -> Ratios:
    """Equation 3: (alpha - min)/(max - min) (s2 - s1) + s1. Equal exponents give ratio 1.

    The rule is not mean-preserving: it raises the total decay wherever s1 + s2 > 2.
    """
    known = np.isfinite(alphas)
    ratios = np.ones_like(alphas)
    if known.any() and np.ptp(alphas[known]) > 0:
        low, high = alphas[known].min(), alphas[known].max()
        ratios[known] = (alphas[known] - low) / (high - low) * (s2 - s1) + s1
    return ratios


def linear_reference(alphas: Sequence[float], s1: float = 0.67, s2: float = 3.0) -> Ratios:
    """The same as the released code computes it, for comparison with it.

    Equal exponents give s2; a NaN in the first place makes every ratio NaN, elsewhere only its own.
    """
    # The released code takes Python's min and max, which keep a leading NaN and drop a later one.
    return np.interp(np.asarray(alphas, float), [min(alphas), max(alphas)], [s1, s2])


def square_root(alphas: Ratios) -> Ratios:
    """sqrt(alpha)/mean sqrt(alpha): mean-preserving and nearly flat."""
    return _over_its_mean(alphas, np.sqrt)


def log2(alphas: Ratios) -> Ratios:
    """log2(alpha)/mean log2(alpha): mean-preserving."""
    return _over_its_mean(alphas, np.log2)


def sigmoid(alphas: Ratios, layers: Sequence[int], beta: float = 4.0) -> Ratios:
    """2/(1 + exp(-beta z)), z the exponent standardised within its layer (population deviation + 1e-8).

    Args:
        alphas: exponents, shape [n].
        layers: the layer of each, n of them.
        beta: steepness; 4 in the paper.
    """
    ratios = np.ones_like(alphas)
    of = np.asarray(layers)
    for layer in np.unique(of):
        inside = (of == layer) & np.isfinite(alphas)
        if inside.any():
            z = (alphas[inside] - alphas[inside].mean()) / (alphas[inside].std() + 1e-8)
            ratios[inside] = 2 / (1 + np.exp(-beta * z))
    return ratios


def _over_its_mean(alphas: Ratios, function: Callable[[Ratios], Ratios]) -> Ratios:
    known = np.isfinite(alphas)
    ratios = np.ones_like(alphas)
    if known.any():
        values = function(alphas[known])
        ratios[known] = values / values.mean()
    return ratios
