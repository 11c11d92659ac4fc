"""The table of a fleet as a parquet file."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from specdiag.auditing.fleets.rows import FleetRow
from specdiag.errors import SourceError
from specdiag.files import converter, open_regular, read_start, shortened
from specdiag.storage.pyarrow import require_pyarrow

if TYPE_CHECKING:
    import pyarrow

COLUMNS: tuple[str, ...] = FleetRow.__struct_fields__
_FLOATS: tuple[str, ...] = ("value", "threshold")
_WHOLES: tuple[str, ...] = ("exit_code", "n_fail", "n_warn", "n_info", "n_tensors", "n_matrices", "n_checks")
_REMEDY = "make one with 'specdiag audit -f parquet'"
_LARGEST = 1 << 30
"""Bytes of the largest table that is read, unpacked: some two million findings."""
_AT_ONCE = 1 << 10
"""Rows that are read at once."""
_GROUP = 1 << 14
"""Rows that are written at once."""


def encode(rows: Iterable[FleetRow]) -> bytes:
    """Write rows as a parquet file. They are taken a few thousand at a time.

    Args:
        rows: in the order of the table.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(_FLOATS, pa.float64()) | dict.fromkeys(_WHOLES, pa.int64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for some in _in_batches(rows):
            columns = {name: [getattr(row, name) for row in some] for name in COLUMNS}
            writer.write_table(pa.table(columns, schema=schema))
    return out.getvalue()


def read(path: Path) -> Iterator[FleetRow]:
    """Read the rows of a table, in their order.

    Args:
        path: the file.

    Raises:
        MissingExtraError: pyarrow is not installed.
        SourceError: the file is missing, damaged, or no such table.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as file:
            if missing := set(COLUMNS) - set(pq.read_schema(file).names):
                raise msgspec.DecodeError(f"it has no column '{min(missing)}'")
            table = pq.ParquetFile(file, read_dictionary=[name for name in COLUMNS if _is_text(name)])
            groups = (table.metadata.row_group(i) for i in range(table.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > _LARGEST:
                raise _too_large(path)
            size = 0
            for batch in table.iter_batches(_AT_ONCE, columns=list(COLUMNS)):
                size += _size(batch)
                if size > _LARGEST:
                    raise _too_large(path)
                yield from _rows(batch)
    except msgspec.DecodeError as error:
        raise SourceError(f"{path} is no audit of a fleet ({error}); {_REMEDY}") from error
    except OSError as error:  # of pyarrow too
        raise SourceError(f"cannot read {path}: {error.strerror or _first_line(error)}") from error
    except (pa.ArrowException, ValueError) as error:
        raise SourceError(f"{path} is damaged ({_first_line(error)}); {_REMEDY}") from error


def _too_large(path: Path) -> SourceError:
    return SourceError(f"{path} unpacks to more than {_LARGEST >> 20} MiB, which are not read")


def is_table(path: Path) -> bool:
    """Tell whether a file is a parquet file."""
    return read_start(path, 4) == b"PAR1"


def _is_text(name: str) -> bool:
    return name not in (*_FLOATS, *_WHOLES)


def _in_batches(rows: Iterable[FleetRow]) -> Iterator[list[FleetRow]]:
    left = iter(rows)
    while some := list(islice(left, _GROUP)):
        yield some


def _size(batch: pyarrow.RecordBatch) -> int:  # pyright: ignore[reportUnknownParameterType]
    """Count the bytes of a batch once every text stands in its row: in the file equal texts are there once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    total = batch.nbytes
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray):
            lengths = pc.call_function("binary_length", [column.dictionary])
            total += pc.call_function("sum", [lengths.take(column.indices)]).as_py() or 0
    return total


def _rows(batch: pyarrow.RecordBatch) -> Iterator[FleetRow]:  # pyright: ignore[reportUnknownParameterType]
    """Read the rows of a batch, column by column: one object for a text that many rows hold."""
    columns = {name: _cells(batch.column(name)) for name in COLUMNS}
    filled = {name: cells for name, cells in columns.items() if any(cell is not None for cell in cells)}
    for cells in zip(*filled.values(), strict=True):
        yield _decode({name: cell for name, cell in zip(filled, cells, strict=True) if cell is not None})


def _cells(column: pyarrow.Array) -> list[object]:  # pyright: ignore[reportUnknownParameterType]
    """List the cells of a column. Counts may be floats: pandas writes so where some row of the column has none."""
    import pyarrow as pa

    if isinstance(column, pa.DictionaryArray):
        texts = column.dictionary.to_pylist()
        return [None if index is None else texts[index] for index in column.indices.to_pylist()]
    cells = column.to_pylist()
    if pa.types.is_floating(column.type):
        return [int(cell) if cell is not None and cell.is_integer() else cell for cell in cells]
    return cells


def _first_line(error: Exception) -> str:
    return shortened(next(iter(str(error).splitlines()), type(error).__name__))


_decode = converter(FleetRow)
