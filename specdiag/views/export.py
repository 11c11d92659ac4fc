"""Rows as csv, markdown, json or parquet. A missing value is empty, or null."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from specdiag.errors import MissingExtraError, UsageError

Rows = Sequence[Mapping[str, Any]]
FORMATS = ("json", "csv", "md", "parquet")


def export(rows: Rows, columns: Sequence[str], format: str) -> bytes:
    """Encode rows in one of `FORMATS`.

    Args:
        rows: mappings from column name to a plain value.
        columns: which columns, in order.
        format: json, csv, md or parquet.

    Raises:
        UsageError: for an unknown format.
        MissingExtraError: for parquet without pyarrow.
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


def _csv(rows: Rows, columns: Sequence[str]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _markdown(rows: Rows, columns: Sequence[str]) -> bytes:
    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", " ")

    lines = [columns, ["---"] * len(columns), *([cell(row.get(c)) for c in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).encode()


def _parquet(rows: Rows, columns: Sequence[str]) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("parquet needs pyarrow: pip install pyarrow") from error
    out = io.BytesIO()
    pq.write_table(pa.table({c: [row.get(c) for row in rows] for c in columns}), out)
    return out.getvalue()
