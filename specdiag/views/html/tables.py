"""Tables of the page: the columns of the terminal, and cells as text with their sort keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from specdiag.decay.plan import DecayPlan
from specdiag.records import Contrast, ModuleRecord, RoleLaws, RoleSummary, Skipped
from specdiag.views.columns import (
    Column,
    contrast_columns,
    filled,
    law_columns,
    plan_columns,
    record_columns,
    role_columns,
    skipped_columns,
)  # fmt: skip

R = TypeVar("R")
_MINOR = ("family", "n", "null")
"""Columns that a phone leaves out besides those that a narrow terminal does."""


class Cell(NamedTuple):
    """A cell."""

    text: str
    order: float | None = None
    """Sort key, where the text does not give it."""
    link: str | None = None


class Head(NamedTuple):
    """The head of a column, how its cells are shown, and what it means."""

    text: str
    kind: str
    """Classes: `n` for numbers, `m` for what a narrow screen leaves out."""
    about: str


class Table(NamedTuple):
    """Heads and rows, ready for the template."""

    heads: list[Head]
    rows: list[list[Cell]]


def role_table(roles: Sequence[RoleSummary]) -> Table:
    """Make a row for each role, with its medians; a phone shows stable ranks, for heads have no exponent."""
    return table(roles, [replace(c, drop=0) if c.head == "stable rank" else c for c in role_columns()])


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """Make a row for each contrast of MLP minus attention."""
    return table(contrasts, contrast_columns())


def law_table(laws: Sequence[RoleLaws]) -> Table:
    """Make a row for each role, with the laws that its tails follow."""
    return table(laws, law_columns())


def record_table(records: Sequence[ModuleRecord], links: Mapping[str, str]) -> Table:
    """Make a row for each matrix.

    Args:
        records: rows of the report.
        links: the panel that each name leads to, by key.
    """
    columns = [replace(c, drop=1) if c.head == "role" else c for c in record_columns()]  # a phone has the name alone
    return table(records, columns, lambda r: links[r.key])


def plan_table(plan: DecayPlan, links: Mapping[str, str]) -> Table:
    """Make a row for each Parameter.

    Args:
        plan: the plan.
        links: the panel that each name leads to; a Parameter outside of the report has none.
    """
    return table(plan.entries, plan_columns(plan), lambda e: links.get(e.name))


def skipped_table(skipped: Sequence[Skipped]) -> Table:
    """Make a row for each tensor that was left out, with the reason."""
    return table(skipped, skipped_columns())


def table(rows: Sequence[R], columns: Sequence[Column[R]], link: Callable[[R], str | None] | None = None) -> Table:
    """Make a table of any rows.

    Args:
        rows: the rows.
        columns: the columns; those without a value in any row are left out.
        link: gives the panel that the first cell of a row leads to.
    """
    shown = filled(columns, rows)

    def cell(column: Column[R], row: R) -> Cell:
        target = link(row) if link is not None and column is columns[0] else None
        return Cell(column.cell(row), None if column.order is None else column.order(row), target)

    heads = [Head(c.head, _kind(c), c.help) for c in shown]
    return Table(heads, [[cell(column, row) for column in shown] for row in rows])


def _kind(column: Column[R]) -> str:
    classes = ("n" if column.right else "", "m" if column.drop or column.head in _MINOR else "")
    return " ".join(filter(None, classes))
