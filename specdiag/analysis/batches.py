"""The work of an analysis as workers take it: what is read at once, and what is measured one after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from specdiag.analysis.cost import flops
from specdiag.checkpoint.tensors import StoredTensor, WeightMatrix
from specdiag.records import Settings
from specdiag.spectra.limits import MIN_EIGENVALUES

_TOGETHER = 64
"""Small units that a worker takes at once."""
_SMALL_BYTES = 1 << 17
_FAMILY_FLOPS = 2e10
"""The most work of a family, about a second: an interruption loses what a worker has in hand."""

_Place = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class Unit:
    """A stored tensor, or a slice of a stacked one, that is read at once, and the matrices cut from it."""

    tensor: StoredTensor
    index: int | None
    matrices: tuple[WeightMatrix, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Units that one worker takes at once.

    Attributes:
        units: at least one.
        kind: `small`, many that take less time than handing them over; `family`, tensors and what is computed from
            them, so that their values are read once; `single`, any other unit.
    """

    units: Sequence[Unit]
    kind: Literal["small", "family", "single"]


def units(matrices: Iterable[WeightMatrix]) -> list[Unit]:
    """Group matrices by what they are cut from, in stored order, so that nothing is read twice."""
    groups: dict[_Place, list[WeightMatrix]] = defaultdict(list)
    for matrix in matrices:
        groups[id(matrix.tensor), matrix.slicer.index].append(matrix)
    return [Unit(group[0].tensor, index, tuple(group)) for (_, index), group in groups.items()]


def batches(work: Sequence[Unit], settings: Settings) -> Iterator[Batch]:
    """Put units together, the most work first.

    A matrix of too few eigenvalues for an exponent is measured in the time that handing it over takes: of such a
    worker takes many. So it does of matrices that are computed from the same tensors, where all are little work.

    Args:
        work: all units.
        settings: how they are measured.
    """
    costs = {id(unit): sum(flops(matrix, settings) for matrix in unit.matrices) for unit in work}
    small: list[Unit] = []
    for family in sorted(_families(work, costs), key=lambda family: -sum(costs[id(unit)] for unit in family)):
        if len(family) > 1:
            yield Batch(family, "family")
        elif _is_small(family[0]):
            small += family
        else:
            yield Batch(family, "single")
        if len(small) == _TOGETHER:
            yield Batch(small, "small")
            small = []
    if small:
        yield Batch(small, "small")


def _families(work: Sequence[Unit], costs: dict[int, float]) -> list[list[Unit]]:
    """Put units that are computed beside each other, and beside the tensors that they are computed from."""
    families: list[list[Unit]] = []
    of_place: dict[_Place, list[Unit]] = {}
    for unit in work:
        if places := [(id(tensor), index) for tensor, index in unit.tensor.computed_from]:
            family = next((of_place[place] for place in places if place in of_place), None)
            if family is None:
                family = []
                families.append(family)
            family.append(unit)
            of_place |= {place: family for place in places if place not in of_place}
    for unit in work:
        if not unit.tensor.computed_from:
            family = of_place.get((id(unit.tensor), unit.index))
            if family is None:
                families.append([unit])
            else:
                family.append(unit)
    return [part for family in families for part in _affordable(family, costs)]


def _affordable(family: list[Unit], costs: dict[int, float]) -> list[list[Unit]]:
    is_little = sum(costs[id(unit)] for unit in family) <= _FAMILY_FLOPS
    return [family] if is_little else [[unit] for unit in family]


def _is_small(unit: Unit) -> bool:
    few = all(m.rank is None and m.n_slices * min(m.shape) < MIN_EIGENVALUES for m in unit.matrices)
    return few and len(unit.matrices) == 1 and unit.tensor.nbytes <= _SMALL_BYTES
