"""Parts of an optimizer step of a matrix: the decay, and the update along and across the weights.

W' = (1 - eta) W + s splits a step into its decay, the fraction eta, and the update s = -lr u. With a = <s, W>/|W| the
part along the weights and p = s - a W/|W| the part across them,

    |W'| - |W| = -eta |W| + a + (sqrt(((1 - eta)|W| + a)^2 + |p|^2) - |(1 - eta)|W| + a|)

term by term decay, parallel and perpendicular. *Correction of Decoupled Weight Decay* (arXiv 2512.08217, equation 2)
assumes a = 0 in the mean, once momentum is accounted for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_CHUNK = 1 << 16, 1 << 24
"""Values that are converted at a time: on a CPU so many as fit into its cache, and on other devices."""


@torch.no_grad()
def inner_products(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Compute <W, W>, <W, W' - W> and <W' - W, W' - W>.

    Args:
        before: W, of any shape.
        after: W', of the same shape.

    Returns:
        Shape [3], on the device of W. It is float64 where the device has it, for the differences are small.
    """
    kind = torch.float32 if before.device.type == "mps" else torch.float64
    size = _CHUNK[before.device.type != "cpu"]
    total = torch.zeros(3, dtype=kind, device=before.device)
    for old, new in zip(before.reshape(-1).split(size), after.reshape(-1).split(size), strict=True):
        old = old.to(kind)
        change = new.to(kind) - old
        total += torch.stack((old.dot(old), old.dot(change), change.dot(change)))
    return total


def to_numbers(rows: Sequence[torch.Tensor]) -> list[list[float]]:
    """Move short vectors to the CPU as numbers, in one transfer.

    Args:
        rows: vectors of one length.
    """
    return torch.stack([row.to(rows[0]) for row in rows]).tolist() if rows else []


@dataclass(frozen=True, slots=True)
class StepParts:
    """Norms and changes of one step; lengths are Frobenius norms, angles radians."""

    norm: float
    """|W|, before the step."""
    norm_change: float
    """|W'| - |W|."""
    decay: float
    """Change of the norm by decay; negative."""
    parallel: float
    """Change by the update along the weights; positive where it lengthened them."""
    perpendicular: float
    """Change by the update across the weights; never negative."""
    update_norm: float
    """|s| = |lr u|, without the decay."""
    cosine: float | None
    """Cosine between s and W; None where one of them is zero, or s is as short as rounding errors."""
    angle: float | None
    """Angle between W and W'; None where one of them is zero."""


def split_step(squared: float, crossed: float, changed: float, removed: float, rounding: float) -> StepParts:
    """Split a step into its parts.

    Args:
        squared: <W, W>.
        crossed: <W, W' - W>.
        changed: <W' - W, W' - W>.
        removed: eta, the fraction of W that decay removed.
        rounding: relative spacing of the weights' type. A shorter update counts as a rounding error.
    """
    norm = math.sqrt(squared)
    update = math.sqrt(max(0.0, changed + 2 * removed * crossed + removed * removed * squared))
    after_squared = max(0.0, squared + 2 * crossed + changed)
    after = math.sqrt(after_squared)
    change = (2 * crossed + changed) / (norm + after) if norm + after else 0.0
    if norm == 0:
        return StepParts(norm, change, 0.0, 0.0, change, update, None, None)
    along = (crossed + removed * squared) / norm
    decay = -removed * norm
    is_measurable = update > rounding * norm
    turned = math.atan2(math.sqrt(max(0.0, changed * squared - crossed * crossed)), squared + crossed)
    return StepParts(
        norm=norm,
        norm_change=change,
        decay=decay,
        parallel=along,
        perpendicular=change - decay - along,
        update_norm=update,
        cosine=max(-1.0, min(1.0, along / update)) if is_measurable else None,
        angle=turned if after else None,
    )
