r"""Rows as csv, markdown, json or parquet. A missing value is empty, or null.

In csv a text cell is on one line and begins no formula. Characters that do not show are written out and backslashes are
doubled; a cell that would begin with = + - @ or an apostrophe, be it after white space, gets an apostrophe in front.
`from_csv` takes both back. In markdown, names are code, and marks are escaped.

>>> to_csv("=SUM(A1)"), from_csv(to_csv("=SUM(A1)"))
("'=SUM(A1)", '=SUM(A1)')
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

import msgspec

from specdiag.errors import UsageError
from specdiag.storage.pyarrow import require_pyarrow
from specdiag.text import markdown
from specdiag.text.printable import restored, reversible

Rows = Sequence[Mapping[str, object]]
_NAMES = frozenset({"name", "module", "tensor", "run", "name_before", "name_after"})
"""Columns that hold names, which stand as code in markdown."""
_FORMULA = re.compile(r"[\s\x00-\x20\x7f-\xa0]*['=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")
"""The beginning of a cell that a spreadsheet takes for a formula, or of one with the apostrophe that prevents it."""
FORMATS = ("json", "csv", "md", "parquet")


def export(rows: Rows, columns: Sequence[str], format: str) -> bytes:
    """Encode rows in one of `FORMATS`.

    Args:
        rows: mappings from column name to a plain value.
        columns: which columns, in order.
        format: json, csv, md or parquet.

    Returns:
        The content of the file.

    Raises:
        UsageError: the format is unknown.
        MissingExtraError: pyarrow, which parquet needs, is not installed.
    """
    if format == "json":
        return msgspec.json.encode([{c: row.get(c) for c in columns} for row in rows])
    if format == "csv":
        return _csv(rows, columns)
    if format == "md":
        return _markdown(rows, columns)
    if format == "parquet":
        return _parquet(rows, columns)
    raise UsageError(f"unknown format '{format}'; choose from {', '.join(FORMATS)}")


def to_csv(text: str) -> str:
    """Write a text as a cell of csv that a spreadsheet shows and does not run.

    Args:
        text: any text.
    """
    cell = reversible(text)
    return f"'{cell}" if _FORMULA.match(text) else cell


def from_csv(cell: str) -> str:
    """Restore the text of a cell.

    Args:
        cell: as `to_csv` made it.
    """
    return restored(cell.removeprefix("'"))


def _csv(rows: Rows, columns: Sequence[str]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writerow({c: to_csv(c) for c in columns})
    writer.writerows({c: _cell(row.get(c)) for c in columns} for row in rows)
    return out.getvalue().encode()


def _cell(value: object) -> object:
    """Keep a number, write anything else as text."""
    return value if value is None or isinstance(value, int | float) else to_csv(str(value))


def _markdown(rows: Rows, columns: Sequence[str]) -> bytes:
    def cell(column: str, value: object) -> str:
        if isinstance(value, str):
            return markdown.code(value) if column in _NAMES else markdown.text(value)
        return "" if value is None else f"{value:.6g}" if isinstance(value, float) else markdown.text(str(value))

    heads = [markdown.text(c) if not c.replace("_", "").isalnum() else c for c in columns]
    lines = [heads, ["---"] * len(columns), *([cell(c, row.get(c)) for c in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).encode()


def _parquet(rows: Rows, columns: Sequence[str]) -> bytes:
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({c: [row.get(c) for row in rows] for c in columns}), out)
    return out.getvalue()
