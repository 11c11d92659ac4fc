"""The arithmetic of `dtype=auto` on the CPU: float32 where the storage type is coarser than what float32 loses.

Rounding to bfloat16 moves alpha by 1e-4, float32 by 1e-6. So float32 is tried on coarse types, and kept where it
decides nothing: exponents move by what their error states, and no count depends on it. Else float64 takes over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from specdiag.records import Settings, TailName
from specdiag.spectra import metrics
from specdiag.spectra.tails import Tail
from specdiag.spectra.trust import HILL_FRACTIONS, hill_threshold, trusted_hill

if TYPE_CHECKING:
    from specdiag.spectra.eigenvalues import ComputeType, Spectrum

COARSE = 2.0**-8
"""Types with this spacing at 1, or a wider one, are tried in float32: bfloat16 and 8-bit codes, not float16.

The storage floor is then above float32's rounding down to a stable rank of n/250 (`fits_storage`).
"""

_OWN_SCANS: frozenset[TailName] = frozenset({"fix-finger", "clip-xmax"})
"""Tail rules that choose a threshold, or what they leave out, by a search of their own: float64 makes the choice."""

_SEEN = 1 / 4
"""Share of `Spectrum.noise` that was seen of one eigenvalue: what is compared here is no bound for its own sake."""


def fixed_type(settings: Settings) -> ComputeType:
    """Choose the arithmetic of what is not tried in float32 first: float64 unless float32 was asked for."""
    return "float32" if settings.dtype == "float32" else "float64"


def first_type(settings: Settings, eps: float) -> ComputeType:
    """Choose the arithmetic in which a matrix is solved first.

    Args:
        settings: `dtype`, `method` and `tail`; float32 singular values are a reference's arithmetic, and never `auto`.
        eps: spacing of the storage type at 1.
    """
    is_tried = settings.dtype == "auto" and settings.method == "gram" and eps >= COARSE
    is_tried = is_tried and settings.tail not in _OWN_SCANS
    return "float32" if is_tried else fixed_type(settings)


def decides_nothing(full: Spectrum, best: Tail | None, shape: tuple[int, int]) -> bool:
    """Tell whether no integer among the columns depends on the rounding of a float32 spectrum.

    Args:
        full: the spectrum.
        best: its KS-optimal tail, if it has one.
        shape: rows and columns of its living part.

    Returns:
        True where zeros are certain, no second threshold fits as well as that of `best`, every
        exponent that float64 would give is precise, and neither `detx_k` nor `mp_spikes` changes when eigenvalues
        move by `Spectrum.noise`.
    """
    if full.n_zero is None:
        return False
    if best is not None and not (_is_unique(full, best) and _are_tails_precise(full)):
        return False
    return metrics.is_detx_certain(full.eigenvalues, full.noise) and _are_spikes_certain(full.living(shape), shape)


def _is_unique(full: Spectrum, best: Tail) -> bool:
    """Compare the lead of the best threshold with what rounding does to two KS distances.

    With s = alpha - 1 and L = ln(lambda/xmin) the model is 1 - exp(-s L). An error e of the logarithms moves it by at
    most s e through L, and by s e/exp(1) through s, where the mean of L is 1/s.
    """
    moved = (best.alpha - 1) * (1 + np.exp(-1)) * _SEEN * full.noise / best.xmin
    return best.lead > 2 * moved


def _are_tails_precise(full: Spectrum) -> bool:
    return all(trusted_hill(full, f) is not None or hill_threshold(full, f) <= full.floor for f in HILL_FRACTIONS)


def _are_spikes_certain(alive: Spectrum, shape: tuple[int, int]) -> bool:
    """Compare the bound of spikes, which the median scales, with the eigenvalues near it."""
    eigenvalues = alive.eigenvalues
    median = float(eigenvalues[len(eigenvalues) // 2]) if len(eigenvalues) else 0.0
    if median <= alive.noise:
        return True  # without a bulk there are no such columns
    bound = metrics.spike_bound(shape, metrics.mp_edge(eigenvalues, shape))
    moved = alive.noise * (1 + bound / median)
    return not bool((np.abs(eigenvalues - bound) <= moved).any())
