"""Rich tables of records and summaries. Where the terminal is narrow, the least needed columns go first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from specdiag.records import ROLES, Contrast, ModuleRecord, RoleLaws, RoleSummary
from specdiag.views.cells import NOTHING, number
from specdiag.views.columns import Column, contrast_columns, filled, law_columns, record_columns, role_columns

from .streams import legible

EXTREMES = 4
ALL_UP_TO = 16
DEPTH_BINS = 6
R = TypeVar("R")


def draw(title: str, columns: Sequence[Column[R]], rows: Iterable[R], width: int) -> Group:
    """Draw a table that fits into the terminal.

    Args:
        title: the line above it.
        columns: empty ones are left out, then as many as must be, the highest `drop` first. Sentences wrap, or else the
            first column folds.
        rows: what the columns take.
        width: of the terminal, in characters.
    """
    rows = list(rows)
    shown = filled(columns, rows)
    cells = {id(c): [legible(c.cell(row)) for row in rows] for c in shown}
    wide = {id(c): max(map(cell_len, [legible(c.head), *cells[id(c)]])) for c in shown}
    while sum(wide[id(c)] + 2 for c in shown) - 2 > width and any(c.drop for c in shown):
        shown.remove(max(shown, key=lambda c: c.drop))
    table = Table(box=None, header_style="dim", pad_edge=False)
    has_sentences = any(c.wraps for c in shown)
    for i, c in enumerate(shown):
        folds = c.wraps if has_sentences else i == 0
        table.add_column(legible(c.head), justify="right" if c.right else "left", overflow="fold", no_wrap=not folds)
    for i in range(len(rows)):
        table.add_row(*(Text(cells[id(c)][i]) for c in shown))
    return Group(Text(legible(title), style="bold"), table)


def role_table(roles: Sequence[RoleSummary], width: int) -> Group:
    """Medians per role, each exponent beside what random matrices of its shapes score."""
    title = "Roles (medians; null: random matrices of the same shapes)"
    return draw(title, role_columns(), roles, width)


def contrast_table(contrasts: Sequence[Contrast], width: int) -> Group:
    """MLP minus attention per layer, beside the same for random matrices."""
    title = "MLP - attention per layer (positive: attention heavier-tailed)"
    return draw(title, contrast_columns(), contrasts, width)


def law_table(laws: Sequence[RoleLaws], width: int) -> Group:
    """Laws that the tails of a role follow."""
    title = "Fit test (ln of each law's likelihood over that of the power law, all matrices of a role)"
    return draw(title, law_columns(), laws, width)


def record_table(records: Iterable[ModuleRecord], title: str, width: int) -> Group:
    """Draw the columns of a report, a row for each matrix."""
    return draw(title, record_columns(), records, width)


def depth_table(records: Sequence[ModuleRecord], basis: str, width: int) -> Group | None:
    """Median exponent by role and depth, the layers in at most six bins; None where no matrix has a layer."""
    placed = [r for r in records if r.layer is not None and r.family in ("attention", "mlp")]
    if not placed:
        return None
    last = max(r.layer or 0 for r in placed)
    size = -(-(last + 1) // DEPTH_BINS)
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in placed:
        value: float | None = getattr(r, basis)
        if value is not None:
            cells[r.role, (r.layer or 0) // size].append(value)

    def column(b: int) -> Column[str]:
        low, high = b * size, min(last, (b + 1) * size - 1)
        return Column(
            f"{low}-{high}" if high > low else f"{low}",
            lambda role: number(median(cells[role, b])) if cells[role, b] else NOTHING,
        )

    columns = [Column("role", str, right=False), *(column(b) for b in range(last // size + 1))]
    return draw(
        f"{basis} by role and layer (medians)",
        columns,
        [role for role in ROLES if role in {r.role for r in placed}],
        width,
    )


def extremes(records: Sequence[ModuleRecord], basis: str) -> list[ModuleRecord]:
    """The few matrices with the smallest and with the largest exponent."""
    ranked = sorted((r for r in records if getattr(r, basis) is not None), key=lambda r: getattr(r, basis))
    return ranked if len(ranked) <= 2 * EXTREMES else ranked[:EXTREMES] + ranked[-EXTREMES:]


def rows_table(rows: Sequence[Mapping[str, object]], title: str, width: int) -> Group:
    """Any rows as they are."""

    def column(name: str, first: bool) -> Column[Mapping[str, object]]:
        def cell(row: Mapping[str, object]) -> str:
            value = row[name]
            return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

        return Column(name, cell, right=not first and isinstance(rows[0][name], int | float))

    return draw(title, [column(name, i == 0) for i, name in enumerate(rows[0] if rows else ())], rows, width)
