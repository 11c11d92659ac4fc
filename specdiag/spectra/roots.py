"""Roots of functions of one variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy import optimize


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Find where a continuous function passes 0, to about the last digits (Brent's method).

    Args:
        function: of opposite sign at both ends.
        low: one end.
        high: the other.
    """
    brentq: Callable[..., Any] = optimize.brentq
    return float(brentq(function, low, high, xtol=1e-13, rtol=1e-13))
