"""The methods that all results share: a file, rows, a data frame, a few lines in a shell, a table in a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from specdiag.errors import MissingExtraError
from specdiag.files import write_atomically
from specdiag.text import checks
from specdiag.text.printable import printable

if TYPE_CHECKING:
    import pandas
    import polars  # pyright: ignore[reportMissingImports]

Row: TypeAlias = dict[str, object]
_MOST_ROWS = 20
"""Rows that a notebook shows."""


class Result:
    """Base of a result. A subclass names its columns and rows, its title, and the table of its notebook view."""

    __slots__ = ()

    def to_json(self) -> bytes:
        """Encode the result as one JSON object, the content of its file."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result as JSON, whole or not at all.

        Args:
            path: the file.

        Returns:
            The path of the file.

        Raises:
            UsageError: the folder cannot be written.
            ComputationError: the disk is full.
        """
        path = checks.path("path", path)
        write_atomically(path, self.to_json())
        return path

    def to_records(self) -> list[Row]:
        """Make plain dictionaries, one a row.

        Returns:
            The rows, all with the same keys.
        """
        return [{name: getattr(row, name) for name in self._columns()} for row in self._rows()]

    def to_dataframe(self) -> pandas.DataFrame | polars.DataFrame:  # pyright: ignore[reportUnknownParameterType]
        """Make a data frame of the rows of `to_records`.

        Returns:
            A data frame of pandas, or of polars where pandas is not installed.

        Raises:
            MissingExtraError: neither is installed.
        """
        return _dataframe(self.to_records(), self._columns())

    def __repr__(self) -> str:
        """Describe the result in a few lines."""
        return f"{type(self).__name__}({printable(self._title())})"

    def _repr_html_(self) -> str:
        """Draw the table that a notebook shows."""
        return _table(self._title(), *self._overview())

    def _title(self) -> str:
        raise NotImplementedError

    def _columns(self) -> Sequence[str]:
        raise NotImplementedError

    def _rows(self) -> Iterable[object]:
        raise NotImplementedError

    def _overview(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """List heads and rows of the notebook view."""
        records = self.to_records()
        return self._columns(), [list(row.values()) for row in records]


def cell(value: object) -> str:
    """Write a value for a person; nothing where there is none."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Draw HTML. Names come from strangers and are escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell(value))}</td>' for value in row)}</tr>" for row in rows[:_MOST_ROWS]
    )
    more = f"<p>and {len(rows) - _MOST_ROWS} more</p>" if len(rows) > _MOST_ROWS else ""
    return (
        f"<p>{html.escape(printable(title))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"
    )


def _dataframe(  # pyright: ignore[reportUnknownParameterType]
    rows: Sequence[Row], columns: Sequence[str]
) -> pandas.DataFrame | polars.DataFrame:
    content = {name: [row[name] for row in rows] for name in columns}
    try:
        import pandas
    except ImportError:
        return _polars(content)
    return pandas.DataFrame(content)


def _polars(content: dict[str, list[object]]) -> polars.DataFrame:  # pyright: ignore[reportUnknownParameterType]
    try:
        import polars  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("a data frame needs pandas or polars: pip install pandas") from error
    return polars.DataFrame(content, strict=False)
