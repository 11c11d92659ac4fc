"""The tail rules by which `alpha` can be fitted: one record each. Their names are `records.TAIL_NAMES`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdiag.records import Settings, TailName
from specdiag.spectra.farms import chosen_windows
from specdiag.spectra.float_types import RawArray
from specdiag.spectra.null import null_moments
from specdiag.spectra.tails import Tail, clip_xmax, fix_finger, hill, hill_paper, ks_optimal


@dataclass(frozen=True, slots=True, kw_only=True)
class TailRule:
    """A way to fit `alpha`, with the facts that an analysis needs about it.

    Attributes:
        name: as options and reports spell it.
        fit: the fit by (eigenvalues ascending, tail fraction).
        uses_fraction: whether the option `tail_fraction` sets the threshold; else the rule scans all of them, and its
            status is that of the lowest. A fixed fraction is no rule: it is `hill` with another `tail_fraction`.
        has_null: whether the fit to the Marchenko-Pastur quantiles is the null of a random matrix.
        drops_zeros: whether eigenvalues that are zero to the storage precision are left out before the fit.
        windows: cuts, by the settings, of a stack of shape [s, rows, cols] whose pooled eigenvalues are fitted; None
            for the matrix.
        is_reference: True for the rule of the AlphaDecay code alone: at fraction 1/2 a float32 SVD repeats its
            arithmetic to the bit, and it has a `z`.
    """

    name: TailName
    fit: Callable[[NDArray[np.float64], float], Tail]
    uses_fraction: bool
    has_null: bool
    drops_zeros: bool
    windows: Callable[[RawArray, Settings], Iterator[RawArray]] | None = None
    is_reference: bool = False

    @property
    def is_hill(self) -> bool:
        """True for a Hill fit to the whole matrix, as `alpha_25` to `alpha_75` are at other fractions."""
        return self.uses_fraction and self.windows is None


_RULES = (
    TailRule(name="hill", fit=hill, uses_fraction=True, has_null=True, drops_zeros=False, is_reference=True),
    TailRule(name="hill-paper", fit=hill_paper, uses_fraction=True, has_null=True, drops_zeros=False),
    TailRule(name="ks", fit=lambda e, _: ks_optimal(e), uses_fraction=False, has_null=False, drops_zeros=True),
    TailRule(name="fix-finger", fit=lambda e, _: fix_finger(e), uses_fraction=False, has_null=False, drops_zeros=True),
    TailRule(name="clip-xmax", fit=lambda e, _: clip_xmax(e), uses_fraction=False, has_null=False, drops_zeros=True),
    TailRule(name="farms", fit=hill, uses_fraction=True, has_null=True, drops_zeros=False, windows=chosen_windows),
)
"""Hill rules drop no zeros, for parity with their references; rules that scan all thresholds do."""

TAIL_RULES: Mapping[TailName, TailRule] = {rule.name: rule for rule in _RULES}


def alpha_sd(tail: TailName, shape: tuple[int, int], n_slices: int) -> float | None:
    """Give the standard deviation of alpha over random matrices of one shape.

    Args:
        tail: the rule of alpha.
        shape: (rows, cols) in either order.
        n_slices: matrices of that shape whose eigenvalues are pooled.

    Returns:
        That of `hill` at tail fraction 1/2; None for other rules and for pooled slices.
    """
    return null_moments(shape)[1] if TAIL_RULES[tail].is_reference and n_slices == 1 else None
