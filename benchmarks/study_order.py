"""Order of the runs of benchmarks/study.py: lr, then base decay, then the comparison, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from study_design import (
    ARMS,
    BEST_UNIFORM,
    EXPLORATORY,
    HEADLINE,
    MOST_EXTENSIONS,
    TEST_SEEDS,
    TUNING_SEEDS,
    TUNING_TOTAL,
    Arm,
    size_of,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """Setting of a run.

    Attributes:
        size: name of a size.
        arm: key of `ARMS`.
        lr: peak lr.
        total: sum of lr x base decay over the run; the base decay is this over the sum of lr.
        seed: of weights and order of the data.
    """

    size: str
    arm: str
    lr: float
    total: float
    seed: int

    @property
    def key(self) -> str:
        """Name in the results."""
        return f"{self.size}/{self.arm}/lr {self.lr:g}/total {self.total:g}/seed {self.seed}"


Losses = Mapping[str, float]
"""Held-out loss by `Cell.key`; infinite for a run that diverged."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The best of a grid. `value` is None while `missing` runs are not made."""

    value: float | None
    missing: tuple[Cell, ...] = ()


def due(size: str, losses: Losses, *, explore: bool = True) -> list[Cell]:
    """List the runs that can be made now, the most informative first.

    Args:
        size: name of a size.
        losses: of finished runs.
        explore: False for the headline alone.

    Returns:
        Runs that are not among `losses`; none if all are made.
    """
    for stage in _stages(size, losses, explore=explore):
        missing = [cell for cell in stage if cell.key not in losses]
        if missing:
            return missing
    return []


def tested(size: str, losses: Losses, name: str, seed: int) -> Cell | None:
    """Return the run of an arm in the test; None while its lr or base is not chosen, or if it has no such seed."""
    arm = ARMS[name]
    lr = chosen_lr(size, losses).value
    total = None if lr is None else chosen_total(size, losses, arm.tuned_as, lr).value
    if lr is None or total is None or seed not in arm.seeds:
        return None
    return Cell(size, name, lr, 0.0 if arm.rule == "none" else total, seed)


def chosen_lr(size: str, losses: Losses) -> Choice:
    """Choose the peak lr by one seed of the uniform decay."""
    cell = Cell(size, BEST_UNIFORM, 0.0, TUNING_TOTAL, TUNING_SEEDS[0])
    return _best(size_of(size).lrs, lambda lr: [replace(cell, lr=lr)], losses)


def chosen_total(size: str, losses: Losses, arm: str, lr: float) -> Choice:
    """Choose the base decay of an arm by the tuning seeds."""
    return _best(
        size_of(size).totals, lambda total: [Cell(size, arm, lr, total, seed) for seed in TUNING_SEEDS], losses
    )


def _best(start: Iterable[float], cells: Callable[[float], list[Cell]], losses: Losses) -> Choice:
    """Take the value with the smallest mean loss. While an edge is best, the grid grows there by a factor of 2."""
    grid, low, high = sorted(start), MOST_EXTENSIONS, MOST_EXTENSIONS
    while True:
        missing = tuple(cell for value in grid for cell in cells(value) if cell.key not in losses)
        if missing:
            return Choice(None, missing)
        best = min(grid, key=lambda value: fmean(losses[cell.key] for cell in cells(value)))
        if best == grid[0] and low:
            grid, low = [grid[0] / 2, *grid], low - 1
        elif best == grid[-1] and high:
            grid, high = [*grid, grid[-1] * 2], high - 1
        else:
            return Choice(best)


def _stages(size: str, losses: Losses, *, explore: bool) -> Iterator[Iterable[Cell]]:
    """Yield runs that need no other ones. A stage is asked for only if those before it are complete."""
    lr = chosen_lr(size, losses)
    yield lr.missing
    if lr.value is None:
        return
    tuned = dict.fromkeys(arm.tuned_as for arm in HEADLINE.values())
    yield [cell for name in tuned for cell in chosen_total(size, losses, name, lr.value).missing]
    yield from _test(size, losses, HEADLINE)
    for name, arm in EXPLORATORY.items() if explore else ():
        yield chosen_total(size, losses, arm.tuned_as, lr.value).missing
        yield from _test(size, losses, {name: arm})


def _test(size: str, losses: Losses, arms: Mapping[str, Arm]) -> Iterator[list[Cell]]:
    for seed in TEST_SEEDS:
        cells = (tested(size, losses, name, seed) for name in arms)
        yield [cell for cell in cells if cell is not None]
