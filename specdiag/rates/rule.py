"""LLR's map from exponents to multiples of the learning rate, as its released code has it (arXiv 2605.22297)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import fmean

from specdiag.decay.assignment import Values, finite, linear
from specdiag.rates.plan import Per
from specdiag.records import Role

ENDS: tuple[Role, ...] = ("embed", "head")
"""Roles that the released code gives the largest ratio, whatever their exponents."""


def rate_ratios(
    values: Values,
    blocks: Sequence[Hashable],
    counts: Sequence[int],
    *,
    s1: float,
    s2: float,
    per: Per,
    preserve_mean: bool,
    unmeasured: int = 0,
) -> list[float]:
    """Map exponents to ratios: (alpha - min)/(max - min) (s2 - s1) + s1.

    Args:
        values: exponent of each Parameter; None where there is none.
        blocks: its component and block; None outside of blocks.
        counts: number of values of each Parameter, and then of each that is not measured.
        s1: ratio of the smallest exponent.
        s2: ratio of the largest exponent, and of what is not measured (embedding and head in the released code).
        per: `layer` replaces each exponent by the mean of its block.
        preserve_mean: divide by the mean ratio, weighted by `counts`.
        unmeasured: number of further Parameters.

    Returns:
        The ratios in the order of `values`, then those of what is not measured.
    """
    known = values if per == "module" else block_means(values, blocks)
    ratios = [*linear(known, s1, s2), *(s2 for _ in range(unmeasured))]
    mean = fmean(ratios, counts) if preserve_mean and ratios else 1.0
    return [ratio / mean for ratio in ratios] if mean > 0 else ratios


def block_means(values: Values, blocks: Sequence[Hashable]) -> list[float | None]:
    """Replace each exponent by the mean of its block; outside of blocks it stays.

    Args:
        values: exponent of each Parameter; None where there is none.
        blocks: its component and block; None outside of blocks.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for value, block in zip(values, blocks, strict=True):
        members[block] += finite([value])
    means = {block: fmean(known) for block, known in members.items() if known}
    return [value if block is None else means.get(block) for value, block in zip(values, blocks, strict=True)]
