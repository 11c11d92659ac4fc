"""Tables of what the weights compute: roles, and heads averaged by layer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console, Group

from specdiag.records import ModuleRecord, RoleSummary, Summary
from specdiag.views.cells import number
from specdiag.views.columns import Column, role_columns

from .tables import DEPTH_BINS, draw

if TYPE_CHECKING:
    from specdiag.report import SpectralReport

_ROLES = ("qk", "ov", "du")
_METRICS = (("rho", "rho", 2, 0), ("alpha", "alpha", 2, 1), ("stable rank", "stable_rank", 1, 2))
"""Head of a column, the field behind it, its digits, and its rank among those that a narrow terminal leaves out."""


def show(summary: Summary, rows: Sequence[ModuleRecord], console: Console, *, all_rows: bool) -> None:
    """Print the tables.

    Args:
        summary: of the report.
        rows: what the weights compute.
        console: of stdout.
        all_rows: give each layer a row, not each of a few ranges.
    """
    title = "Function (medians; null: random matrices, of qk, ov and du products of two)"
    console.print(draw(title, _role_columns(summary), summary.function, console.width))
    console.print()
    by_layer = _by_layer(rows, console.width, all_rows=all_rows)
    if by_layer is not None:
        console.print(by_layer)
        console.print()


def _role_columns(summary: Summary) -> list[Column[RoleSummary]]:
    """The columns of roles; the stable rank stays where it is the only number of a role."""
    keep = any(role.n_alpha == 0 for role in summary.function)
    return [replace(c, drop=0) if keep and c.head == "stable rank" else c for c in role_columns()]


def show_title(report: SpectralReport, console: Console) -> None:
    """Print the first lines of a report of products alone."""
    counts = Counter(row.role for row in report.function)
    console.print(f"{report.source}: {', '.join(f'{n} {role}' for role, n in counts.items())}", style="bold")
    console.print()
    console.print(
        "Products of weights alone: no single matrix was chosen. qk: which tokens attend to which. ov: what is copied. "
        "du: the MLP.",
        soft_wrap=True,
    )
    console.print()


def _by_layer(rows: Sequence[ModuleRecord], width: int, *, all_rows: bool) -> Group | None:
    """Means over the heads of each layer; None where no product has one."""
    last = max((r.layer for r in rows if r.layer is not None and r.role in _ROLES), default=None)
    if last is None:
        return None
    size = 1 if all_rows else -(-(last + 1) // DEPTH_BINS)
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for row in rows:
        for _, name, *_ in _METRICS:
            value: float | None = getattr(row, name)
            if row.layer is not None and value is not None:
                values[row.role, name, row.layer // size].append(value)

    def column(role: str, head: str, name: str, digits: int, drop: int) -> Column[int]:
        def cell(group: int) -> str:
            found = values[role, name, group]
            return number(fmean(found) if found else None, digits)

        return Column(f"{role} {head}", cell, drop)

    def label(group: int) -> str:
        low, high = group * size, min(last, (group + 1) * size - 1)
        return f"{low}-{high}" if high > low else f"{low}"

    columns = [Column("layer", label, right=False), *(column(role, *m) for m in _METRICS for role in _ROLES)]
    return draw("Function by layer (means over heads)", columns, range(last // size + 1), width)
