"""Times at which modules are measured, and division among ranks: a round has one module for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Mode = Literal["round-robin", "sweep", "background"]


def rounds(costs: Sequence[float], world: int) -> list[list[int]]:
    """Divide modules into rounds of similar cost, the most expensive first, so that no rank waits long.

    Args:
        costs: of each module, in any unit; equal costs keep their order.
        world: number of ranks.

    Returns:
        Indices of modules, at most `world` in each round.
    """
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    return [order[start : start + world] for start in range(0, len(order), world)]


def due(n_rounds: int, every: int, mode: Mode, last: int, step: int) -> list[int]:
    """Choose the rounds to run at a step; over any `every` steps in a row each comes exactly once.

    Args:
        n_rounds: number of rounds.
        every: steps between two measurements of a module.
        mode: `sweep` runs all at once, when step + 1 is a multiple of `every` (as the AlphaDecay code does);
            `round-robin` spreads them evenly, and so does `background`.
        last: the step of the last call; rounds that were due since then are included.
        step: this step, counted from 0.

    Returns:
        Indices of rounds.
    """
    if mode == "sweep":
        return list(range(n_rounds)) if (step + 1) // every > (last + 1) // every else []
    first, end = (last + 1) * n_rounds // every, (step + 1) * n_rounds // every
    return [i % n_rounds for i in range(first, min(end, first + n_rounds))]
