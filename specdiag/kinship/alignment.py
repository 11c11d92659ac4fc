"""Layers of two models side by side: those of one index; where the depths differ those that are nearest, in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specdiag.kinship.distances import Logs, attention_distance
from specdiag.kinship.spectra import BlockSpectra

_MOST_OTHERS = 1000
"""Pairs of unequal layers that are measured: their median is all that is needed."""

Indices = list[tuple[int, int]]
"""Places of layers of either model that stand side by side."""


def align(a: Sequence[BlockSpectra], b: Sequence[BlockSpectra]) -> Indices:
    """Put layers side by side.

    Args:
        a: blocks of a model.
        b: blocks of another, of the same head size.

    Returns:
        Pairs of places; empty where the models have no component in common.
    """
    pairs: Indices = []
    of_b = _by_component(b)
    for component, places in _by_component(a).items():
        others = of_b.get(component, [])
        if [a[i].layer for i in places] == [b[j].layer for j in others]:
            pairs += zip(places, others, strict=True)
        elif others:
            swap = len(places) > len(others)
            short, long = (others, places) if swap else (places, others)
            logs = [Logs.of((b if swap else a)[i]) for i in short], [Logs.of((a if swap else b)[j]) for j in long]
            table = np.array([[attention_distance(x, y) for y in logs[1]] for x in logs[0]])
            found = [(short[i], long[j]) for i, j in enumerate(_in_order(table))]
            pairs += [(j, i) for i, j in found] if swap else found
    return pairs


def others(a: Sequence[BlockSpectra], b: Sequence[BlockSpectra], pairs: Indices) -> Indices:
    """List pairs of layers that do not stand side by side, evenly spaced where there are many.

    Args:
        a: blocks of a model.
        b: blocks of another.
        pairs: those that do.
    """
    equal = set(pairs)
    first, second = sorted({i for i, _ in pairs}), sorted({j for _, j in pairs})
    found = [(i, j) for i in first for j in second if (i, j) not in equal and a[i].component == b[j].component]
    step = -(-len(found) // _MOST_OTHERS)
    return found[:: step | 1] if step > 1 else found


def _by_component(blocks: Sequence[BlockSpectra]) -> dict[str | None, list[int]]:
    places: dict[str | None, list[int]] = defaultdict(list)
    for i, block in enumerate(blocks):
        places[block.component].append(i)
    return places


def _in_order(table: NDArray[np.float64]) -> list[int]:
    """Choose for each row a later column than for the row before, so that the sum is least.

    Args:
        table: distances, no more rows than columns.
    """
    n, m = table.shape
    best = np.full((n + 1, m + 1), np.inf)
    best[0] = 0
    for i in range(1, n + 1):
        for j in range(i, m + 1):
            best[i, j] = min(best[i, j - 1], best[i - 1, j - 1] + table[i - 1, j - 1])
    chosen: list[int] = []
    j = m
    for i in range(n, 0, -1):
        while best[i, j] == best[i, j - 1]:
            j -= 1
        j -= 1
        chosen.append(j)
    return chosen[::-1]
