"""Shares of parents in a mix, by least squares on the products of each layer.

A merge M = sum of t_i P_i, the t adding up to 1, has nearly the products of sum of t_i F(P_i): what is bilinear in the
change from one parent to the other is small, and zero where a layer is taken over whole. So the form in which M is
stored does not matter, but for a turn of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specdiag.function.arrays import Array

_ROUNDING = 1e-14
"""Squared distance, relative to the squared norm, below which two products are equal."""


def shares(tables: Sequence[Array]) -> tuple[tuple[float, ...], float]:
    """Fit a model as a mix of others.

    Args:
        tables: inner products [k, k] of the model, first, and of k - 1 others; each counts alike.

    Returns:
        The share of each of the others, adding up to 1, and the distance from that mix over the largest distance of
        two of the others. Where these do not differ, all is the first one's, and the distance is 0 or 1.
    """
    unit = np.eye(len(tables[0]))
    steps, change = unit[2:] - unit[1], unit[0] - unit[1]
    scaled = [table / spread for table in tables if (spread := _spread(table)) > 0]
    if not scaled:
        moved = any(change @ table @ change > _ROUNDING * table.max() for table in tables)
        return (1.0, *(0.0,) * len(steps)), float(moved)
    total = np.mean(scaled, axis=0)
    right = steps @ total @ change
    fitted = np.linalg.lstsq(steps @ total @ steps.T, right, rcond=None)[0]
    left = float(change @ total @ change - fitted @ right)
    return (float(1 - fitted.sum()), *map(float, fitted)), max(0.0, left) ** 0.5


def _spread(table: Array) -> float:
    """Compute the largest squared distance of two models but the first; 0 where it is no more than rounding."""
    norms = np.diag(table)[1:]
    distances = norms[:, None] + norms[None] - 2 * table[1:, 1:]
    largest = float(distances.max(initial=0.0))
    return largest if largest > _ROUNDING * norms.max() else 0.0
