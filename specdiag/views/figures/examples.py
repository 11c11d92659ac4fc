"""A few matrices that stand for all: of each group the heaviest tail, the median and the lightest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdiag.records import ROLES, ModuleRecord, Role
from specdiag.views.figures.selection import in_role_order, value


class Group(NamedTuple):
    """Roles that are looked at together, with the marker of their mean."""

    name: str
    roles: tuple[Role, ...]
    marker: str


GROUPS = (
    Group("q, k", ("q", "k", "kv"), "o"),
    Group("v, o", ("v", "o"), "s"),
    Group("MLP", ("gate", "up", "down"), "^"),
)
"""The groups of attention and MLP."""
_OTHERS = Group("others", tuple(role for role in ROLES if not any(role in group.roles for group in GROUPS)), "")
_PLACES = ("heaviest", "median", "lightest")


class Example(NamedTuple):
    """A matrix, and why it was chosen."""

    record: ModuleRecord
    reason: str
    """Its rank in its group with the value; empty where nothing was left out."""


def examples(records: Sequence[ModuleRecord], most: int) -> list[list[Example | None]]:
    """Choose matrices for a grid of panels.

    Args:
        records: those to choose from.
        most: number up to which all of them are taken, in the order of the roles.

    Returns:
        Rows of a grid, with None where a group has fewer than three. A single row where all are taken.
    """
    if len(records) <= most:
        ordered = sorted(in_role_order(records), key=lambda r: (r.layer is None, r.layer or 0))
        return [[Example(r, "") for r in ordered]]
    metric = "square_alpha" if any(r.square_alpha is not None for r in records) else "alpha"
    columns = [column for group in (*GROUPS, _OTHERS) if (column := _column(records, group, metric))]
    return [list(row) for row in zip(*columns, strict=True)] or [[Example(r, "") for r in records[:most]]]


def _column(records: Sequence[ModuleRecord], group: Group, metric: str) -> list[Example | None]:
    """Give the heaviest, the median and the lightest; nothing of a group without a value."""
    valued = [(v, r) for r in records if r.role in group.roles and (v := value(r, metric)) is not None]
    if not valued:
        return []
    ranked = sorted(valued, key=lambda pair: pair[0])
    n = len(ranked)
    ranks = [0 if n > 1 else None, n // 2 if n > 2 else None, n - 1]
    places = _PLACES if n > 1 else ("", "", "only one")
    return [
        None
        if rank is None
        else Example(
            ranked[rank][1], f"{place} of {f'{n} ' if n > 1 else ''}{group.name}: {metric} {ranked[rank][0]:.2f}"
        )
        for place, rank in zip(places, ranks, strict=True)
    ]
