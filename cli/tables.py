"""Rich tables of records and summaries. Where the terminal is narrow, the least needed columns go first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from types import MappingProxyType
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from specdiag.records import ROLES, Contrast, ModuleRecord, RoleLaws, RoleSummary
from specdiag.views.cells import NOTHING, number
from specdiag.views.columns import Column, contrast_columns, filled, law_columns, record_columns, role_columns

from .short_names import shorten
from .streams import legible

EXTREMES = 8
ALL_UP_TO = 16
DEPTH_BINS = 6
_NAME, _SENTENCE = 28, 24
"""Characters that a name and a line of a sentence have at least, unless the terminal is too narrow for that."""
_LEAST_NAME = 20
"""Characters below which a name that was shortened says too little: then rows are listed below one another."""
R = TypeVar("R")


def _explained(title: str, about: Mapping[str, str], shown: Sequence[Column[R]]) -> str:
    """Add what the shown columns mean to a title, within its parentheses."""
    said = [about[c.head] for c in shown if c.head in about]
    return title if not said else f"{title.removesuffix(')')}; {'; '.join(said)})"


def draw(
    title: str,
    columns: Sequence[Column[R]],
    rows: Iterable[R],
    width: int,
    style: Callable[[R], str] = lambda row: "",
    about: Mapping[str, str] = MappingProxyType({}),
) -> Group:
    """Draw a table that fits into the terminal.

    Args:
        title: the line above it.
        columns: empty ones are left out, then as many as must be, the highest `drop` first. Where that is not enough
            the names of the first column lose the parts that they share, and where that leaves too little of them each
            row is a name with its values below. Sentences wrap; else the first column folds.
        rows: what the columns take.
        width: of the terminal, in characters.
        style: of a row, beside a word in it that says the same.
        about: what columns mean, by their heads: said in the title of a table that shows the column.
    """
    rows = list(rows)
    given = filled(columns, rows)
    cells = {id(c): [legible(c.cell(row)) for row in rows] for c in given}
    wide = {id(c): max(_least(c, text) for text in [legible(c.head), *cells[id(c)]]) for c in given}
    shown = _fitting(given, wide, width)
    if given and _taken(shown, wide) > width:
        first = id(given[0])
        longest, wide[first] = wide[first], min(wide[first], _NAME)
        shown = _fitting(given, wide, width)
        room = width - _taken(shown, wide) + wide[first]
        if room < min(longest, _LEAST_NAME):
            title = _explained(title, about, shown)
            return Group(Text(legible(title), style="bold"), *_listed([cells[id(c)] for c in shown], shown, width))
        cells[first] = shorten(cells[first], room, legible("…"))
        wide[first] = max(map(cell_len, [legible(given[0].head), *cells[first]]))
    title = _explained(title, about, shown)
    has_sentences = any(c.wraps for c in shown)
    if not has_sentences and _taken(shown, wide) <= width:
        lines = [Text(_line([legible(c.head) for c in shown], shown, wide), style="dim")]
        for i, row in enumerate(rows):
            lines.append(Text(_line([cells[id(c)][i] for c in shown], shown, wide), style=style(row)))
        return Group(Text(legible(title), style="bold"), *lines)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for i, c in enumerate(shown):
        folds = c.wraps if has_sentences else i == 0
        table.add_column(legible(c.head), justify="right" if c.right else "left", overflow="fold", no_wrap=not folds)
    for i, row in enumerate(rows):
        table.add_row(*(Text(cells[id(c)][i]) for c in shown), style=style(row))
    return Group(Text(legible(title), style="bold"), table)


def _line(cells: Sequence[str], columns: Sequence[Column[R]], wide: Mapping[int, int]) -> str:
    """A row in which nothing is broken, each cell as wide as its column."""
    padded: list[str] = []
    for text, column in zip(cells, columns, strict=True):
        gap = " " * (wide[id(column)] - cell_len(text))
        padded.append(gap + text if column.right else text + gap)
    return "  ".join(padded)


def _listed(cells: Sequence[Sequence[str]], columns: Sequence[Column[R]], width: int) -> list[Text]:
    """Each row as its first cell, and below it its other values with their heads, broken between these alone."""
    lines: list[str] = []
    for name, *others in zip(*cells, strict=True):
        lines.append(name)
        line = ""
        for column, text in zip(columns[1:], others, strict=True):
            pair = f"  {legible(column.head)} {text}"
            if line and cell_len(line + pair) > width:
                lines.append(line)
                line = ""
            line += pair
        lines.append(line)
    return [Text(line, style="" if line.startswith("  ") else "bold", overflow="fold") for line in lines]


def _least(column: Column[R], text: str) -> int:
    """Characters that a cell needs: a sentence those of its longest word, and enough to be read."""
    if not column.wraps:
        return cell_len(text)
    return max(min(cell_len(text), _SENTENCE), *map(cell_len, text.split()), 0)


def _fitting(columns: Sequence[Column[R]], wide: Mapping[int, int], width: int) -> list[Column[R]]:
    """Leave out the least needed columns until the others fit, or all are needed."""
    shown = list(columns)
    while _taken(shown, wide) > width and any(c.drop for c in shown):
        shown.remove(max(shown, key=lambda c: c.drop))
    return shown


def _taken(columns: Sequence[Column[R]], wide: Mapping[int, int]) -> int:
    return sum(wide[id(c)] + 2 for c in columns) - 2


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


def record_table(records: Iterable[ModuleRecord], title: str, width: int, key: str = "alpha") -> Group:
    """Draw the columns of a report, a row for each matrix; the one called `key` stays, and what was asked for."""
    columns = [replace(c, drop=0) if c.head in (key, "shift by form") else c for c in record_columns()]
    return draw(title, columns, records, width, lambda r: "red" if r.status in ("nonfinite", "failed") else "")


def depth_table(records: Sequence[ModuleRecord], basis: str, width: int) -> Group | None:
    """Median exponent by role and depth, the layers in at most six bins; None where no matrix of a layer has one."""
    placed = [r for r in records if r.layer is not None and r.family in ("attention", "mlp")]
    if all(getattr(r, basis) is None for r in placed):
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


def most_rows(n: int, top: int | None) -> int:
    """How many of `n` rows are shown: the number that was given, else all of a short table and a few of a long one."""
    return min(n, top) if top is not None else n if n <= ALL_UP_TO else EXTREMES


def extremes(records: Sequence[ModuleRecord], basis: str, most: int) -> list[ModuleRecord]:
    """The few matrices with the smallest and with the largest exponent, and of an odd number one more of the former."""
    ranked = sorted((r for r in records if getattr(r, basis) is not None), key=lambda r: getattr(r, basis))
    return ends(ranked, most)


def ends(ranked: list[R], most: int) -> list[R]:
    """The first and the last of a list, as many as may be shown."""
    return ranked if len(ranked) <= most else ranked[: most - most // 2] + ranked[len(ranked) - most // 2 :]


def rows_table(rows: Sequence[Mapping[str, object]], title: str, width: int) -> Group:
    """Any rows as they are."""

    def column(name: str, first: bool) -> Column[Mapping[str, object]]:
        def cell(row: Mapping[str, object]) -> str:
            value = row[name]
            return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

        return Column(name, cell, right=not first and isinstance(rows[0][name], int | float))

    return draw(title, [column(name, i == 0) for i, name in enumerate(rows[0] if rows else ())], rows, width)
