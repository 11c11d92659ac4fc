"""Layers and modules without an update, though others like them have one."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

from specdiag.checkpoint.adapters.match import Names
from specdiag.checkpoint.adapters.targets import Targets, ends, split_at_layer
from specdiag.checkpoint.adapters.versions import places

_EXPERTS = re.compile(r"expert|router|(^|\.)gate$")
_RARE = 0.1
"""Layers with fewer updates are faults where at most this share of the layers has fewer, else a design."""
_COMMON = 0.5
"""Share of the layers that one set of modules must have to be the usual one."""
_Members = dict[int, frozenset[str]]
"""The modules of each layer that have an update, without the path above them."""


def gaps(modules: Collection[str], targets: Targets, base: Collection[str] | None) -> Iterator[str]:
    """Name the layers, and modules of layers, that lack an update.

    With the base model's names this is exact: each module that other layers adapt and that the settings name has one.
    Without, layers between two like ones count, and layers with fewer updates than most.

    Args:
        modules: those with an update.
        targets: what the settings name; without a list nothing is missed.
        base: names of the base model's tensors; None where they are not known.

    Yields:
        An entry of target_modules, the path of a layer without any update, or that of a parameter.

    Raises:
        SourceError: the settings hold an expression that cannot be followed.
    """
    if not targets.are_listed:
        return
    stems: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module in modules:
        if (place := split_at_layer(module)) is not None:
            stems[place[0]][place[1]].add(place[2])
    if base is not None:
        yield from _untouched(modules, targets, base)
    known = None if base is None else _by_stem(base)
    for stem, found in stems.items():
        present = {number: frozenset(members) for number, members in sorted(found.items())}
        there = {} if known is None or base is None else _held(stem, present, known, Names(base))
        expected = _expected(present) if known is None else there
        for number, members in sorted(expected.items()):
            missing = sorted(
                rest
                for rest in members - present.get(number, frozenset())
                if targets.include(f"{stem}.{number}.{rest}")
            )
            if missing and number not in present:
                yield f"{stem}.{number}"
            else:
                yield from (f"{stem}.{number}.{rest}.weight" for rest in missing)


def _untouched(modules: Collection[str], targets: Targets, base: Collection[str]) -> Iterator[str]:
    """Name the entries of target_modules that the base model has and no update is of.

    Experts and their routers are left out: whether PEFT can adapt them depends on the version of their code.
    """
    adapted = {end for module in modules for end in ends(module)}
    weights = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    held = {end: module for module in reversed(weights) for end in ends(module) if not _EXPERTS.search(module)}
    by_place = {spot for module in modules for spot in places(f"{module}.weight")}
    for entry in targets.entries:
        is_lost = entry not in adapted and entry in held and targets.include(held[entry])
        if is_lost and by_place.isdisjoint(places(f"{held[entry]}.weight")):
            yield f"target_modules.{entry}"


def _by_stem(base: Collection[str]) -> Mapping[str, Mapping[int, set[str]]]:
    """Sort the base model's weights by the path above their layer and its number."""
    stems: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in base:
        if name.endswith(".weight") and (place := split_at_layer(name.removesuffix(".weight"))) is not None:
            stems[place[0]][place[1]].add(place[2])
    return stems


def _held(stem: str, present: _Members, known: Mapping[str, Mapping[int, set[str]]], names: Names) -> _Members:
    """List in every layer of the base model the modules that an update of another layer is of."""
    adapted = frozenset[str]().union(*present.values())
    number, members = next(iter(present.items()))
    name = names.find(f"{stem}.{number}.{min(members)}.weight")
    place = None if name is None else split_at_layer(name.removesuffix(".weight"))
    return {} if place is None else {n: adapted & held for n, held in known.get(place[0], {}).items()}


def _expected(present: _Members) -> _Members:
    """List what the layers between two like ones lack, and what most layers have.

    Layers at regular distances, as those with attention in a hybrid, and fewer layers than gaps are taken for a design.
    """
    expected: _Members = {}
    between = [pair for pair in pairwise(present) if pair[1] - pair[0] > 1]
    n_missing = sum(above - below - 1 for below, above in between)
    is_regular = len({above - below for below, above in pairwise(present)}) == 1
    if not is_regular and 2 * n_missing <= len(present):
        for below, above in between:
            if present[below] == present[above]:
                expected |= dict.fromkeys(range(below + 1, above), present[below])
    if not present:
        return expected
    usual, n = Counter(present.values()).most_common(1)[0]
    poorer = [k for k, members in present.items() if members < usual and 2 * len(members) >= len(usual)]
    if n >= max(2, _COMMON * len(present)) and len(poorer) <= max(1, _RARE * len(present)):
        expected |= dict.fromkeys(poorer, usual)
    return expected
