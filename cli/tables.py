"""Rich tables of records and summaries. Where the terminal is narrow, the least needed columns go first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from specdiag.records import Contrast, ModuleRecord, RoleSummary

from .streams import legible

EXTREMES = 10
ALL_UP_TO = 60
DEPTH_BINS = 6
_NOTHING = "·"


@dataclass(frozen=True)
class Column:
    """A column: its head, its cell for a row, and when it is dropped (0 never, the highest first)."""

    head: str
    cell: Callable[[Any], str]
    drop: int = 0
    right: bool = True


def number(value: float | int | None, digits: int = 2) -> str:
    """As everywhere: see `specdiag.views.cells`."""
    from specdiag.views.cells import number as told

    return told(value, digits)


def field(head: str, name: str, digits: int = 2, drop: int = 0) -> Column:
    """A column that shows one attribute."""
    return Column(head, lambda row: number(getattr(row, name), digits), drop)


def draw(title: str, columns: Sequence[Column], rows: Iterable[Any], width: int) -> Group:
    """A table of `rows` that fits into `width` by leaving columns out, empty ones first; the first column folds."""
    rows = list(rows)
    found = {c.head: [c.cell(row) for row in rows] for c in columns}
    shown = [c for c in columns if not rows or any(cell != _NOTHING for cell in found[c.head])]
    cells = {head: list(map(legible, column)) for head, column in found.items()}
    wide = {c.head: max(map(cell_len, [legible(c.head), *cells[c.head]])) for c in columns}
    while sum(wide[c.head] + 2 for c in shown) - 2 > width and any(c.drop for c in shown):
        shown.remove(max(shown, key=lambda c: c.drop))
    table = Table(box=None, header_style="dim", pad_edge=False)
    for i, c in enumerate(shown):
        table.add_column(legible(c.head), justify="right" if c.right else "left", overflow="fold", no_wrap=i > 0)
    for i in range(len(rows)):
        table.add_row(*(Text(cells[c.head][i]) for c in shown))
    return Group(Text(legible(title), style="bold"), table)


def role_table(roles: Sequence[RoleSummary], width: int) -> Group:
    """Medians per role, each exponent beside what random matrices of its shapes score."""
    columns = (
        Column("family", lambda r: r.family, right=False),
        Column("role", lambda r: r.role, right=False),
        Column("n", lambda r: str(r.n) if r.n == r.n_alpha else f"{r.n_alpha} of {r.n}"),
        field("alpha", "alpha"),
        Column("min-max", lambda r: _range(r.alpha_min, r.alpha_max), 4),
        field("null", "alpha_null"),
        field("rho", "rho", drop=2),
        field("alpha_square", "alpha_square"),
        Column("min-max ", lambda r: _range(r.alpha_square_min, r.alpha_square_max), 5),
        field("null ", "alpha_square_null"),
        field("pl_alpha", "pl_alpha", drop=1),
        field("stable rank", "stable_rank", 1, drop=3),
    )
    return draw("Roles (medians; null: random matrices of the same shapes)", columns, roles, width)


def contrast_table(contrasts: Sequence[Contrast], width: int) -> Group:
    """MLP minus attention per layer, beside the same for random matrices."""
    columns = (
        Column("basis", lambda c: c.basis, right=False),
        Column("attention", lambda c: c.attention, right=False),
        Column("layers > 0", lambda c: f"{c.n_positive}/{c.n_layers}"),
        Column("difference", lambda c: f"{c.difference:+.3f}"),
        Column("95 %", lambda c: f"{c.low:+.2f} .. {c.high:+.2f}", 3),
        Column("p", lambda c: f"{c.p:.2g}", 1),
        Column("p Holm", lambda c: f"{c.p_holm:.2g}", 2),
        Column("AUC", lambda c: f"{c.auc:.2f}", 4),
        Column(
            "random > 0", lambda c: _NOTHING if c.random_n_positive is None else f"{c.random_n_positive}/{c.n_layers}"
        ),
        Column("random diff.", lambda c: _NOTHING if c.random_difference is None else f"{c.random_difference:+.3f}"),
        Column("random p", lambda c: _NOTHING if c.random_p is None else f"{c.random_p:.2g}", 5),
    )
    return draw("MLP - attention per layer (positive: attention heavier-tailed)", columns, contrasts, width)


def record_table(records: Iterable[ModuleRecord], title: str, width: int) -> Group:
    """One row a matrix."""
    columns = (
        Column("matrix", lambda r: r.key, right=False),
        Column("role", lambda r: r.role, right=False),
        Column("shape", lambda r: f"{r.rows}x{r.cols}" + (f" x{r.n_slices}" if r.n_slices > 1 else ""), 1),
        Column("alpha", lambda r: number(r.alpha, 3) if r.status == "ok" else r.status),
        Column("± arith.", lambda r: _NOTHING if r.alpha_error is None else f"{r.alpha_error:.0e}", 7),
        field("null", "alpha_null", 3),
        field("rho", "rho", drop=2),
        field("z", "z", 0, drop=5),
        field("ks", "ks", drop=6),
        Column("at .25/.5/.75", _three_fractions, 8),
        field("alpha_square", "alpha_square", 3),
        field("pl_alpha", "pl_alpha", drop=3),
        field("stable rank", "stable_rank", 1, drop=4),
        field("sigma_max", "spectral_norm", drop=9),
    )
    return draw(title, columns, records, width)


def _three_fractions(r: ModuleRecord) -> str:
    values = (r.alpha_25, r.alpha_50, r.alpha_75)
    return _NOTHING if values == (None, None, None) else "/".join(number(v) for v in values)


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

    def column(b: int) -> Column:
        low, high = b * size, min(last, (b + 1) * size - 1)
        return Column(
            f"{low}-{high}" if high > low else f"{low}",
            lambda role: number(median(cells[role, b])) if cells[role, b] else _NOTHING,
        )

    columns = (Column("role", str, right=False), *(column(b) for b in range(last // size + 1)))
    return draw(f"{basis} by role and layer (medians)", columns, dict.fromkeys(r.role for r in placed), width)


def extremes(records: Sequence[ModuleRecord], basis: str) -> list[ModuleRecord]:
    """The ten matrices with the smallest and the ten with the largest exponent."""
    ranked = sorted((r for r in records if getattr(r, basis) is not None), key=lambda r: getattr(r, basis))
    return ranked if len(ranked) <= 2 * EXTREMES else ranked[:EXTREMES] + ranked[-EXTREMES:]


def rows_table(rows: Sequence[dict[str, Any]], title: str, width: int) -> Group:
    """Any rows as they are."""

    def column(name: str, first: bool) -> Column:
        def cell(row: dict[str, Any]) -> str:
            value = row[name]
            return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

        return Column(name, cell, right=not first and isinstance(rows[0][name], int | float))

    return draw(title, [column(name, i == 0) for i, name in enumerate(rows[0] if rows else ())], rows, width)


def _range(low: float | None, high: float | None) -> str:
    return _NOTHING if low is None or high is None else f"{low:.2f}-{high:.2f}"
