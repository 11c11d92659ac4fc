"""A sample of the experts of a mixture, the same in every layer."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from specdiag.architecture.roles import Part
from specdiag.errors import UsageError

_STACKED = re.compile(r"expert=([0-9]+)")
_ALONE = re.compile(r"\bexperts\.([0-9]{1,9})\.")

Parts = dict[str, tuple[Part, ...]]


def sample_experts(parts: Mapping[str, tuple[Part, ...]], n: int, seed: int) -> tuple[Parts, dict[str, str], list[str]]:
    """Keep `n` experts, drawn without replacement, of every tensor that holds experts.

    Args:
        parts: the matrices of each tensor.
        n: how many experts to keep.
        seed: of the draw; a seed and a number of experts determine it.

    Returns:
        The parts that stay; for each tensor that lost some, the reason; notes.

    Raises:
        UsageError: `n` is below 1.
    """
    if n < 1:
        raise UsageError(f"experts={n} leaves nothing to analyse: give 1 or more")
    numbers = {
        number for name, matrices in parts.items() for part in matrices if (number := _expert(name, part)) is not None
    }
    total = 1 + max(numbers, default=-1)
    if n >= total:
        return dict(parts), {}, []
    drawn = sorted(random.Random(seed).sample(range(total), n))
    sampled: Parts = {}
    reasons: dict[str, str] = {}
    for name, matrices in parts.items():
        sampled[name] = tuple(part for part in matrices if _expert(name, part) in (None, *drawn))
        if len(sampled[name]) < len(matrices):
            reasons[name] = f"expert sampling: {n} of {total} analysed"
    shown = ", ".join(map(str, drawn))
    return sampled, reasons, [f"Analysed {n} of {total} experts of each layer ({shown}), drawn with seed {seed}."]


def _expert(name: str, part: Part) -> int | None:
    """Find the number of the expert that a matrix belongs to: one of a stack, or a tensor of its own."""
    match = _STACKED.match(part.module.part or "") or _ALONE.search(name)
    return int(match[1]) if match else None
