"""The kinds of saved records: the name of each, its schema, and the command that makes it.

A kind whose fields change gets the next number. Older files are not read: they are made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from specdiag.errors import SourceError
from specdiag.files import json_decoder, read_start, read_whole, shortened

T = TypeVar("T")

LIMIT = 1 << 30
"""Bytes of the largest record that is read: a report of 100,000 matrices has 60 MB."""
_N_START = 64


class Kind(NamedTuple):
    """A kind of saved record.

    Attributes:
        name: its name in messages.
        schema: the number that is written, and the only one that is read.
        field: a field that every schema of this kind has, and no other kind.
        remedy: how a file of this kind is made anew, as the end of a sentence.
    """

    name: str
    schema: int
    field: str
    remedy: str


REPORT = Kind("specdiag report", 8, "records", "make one with 'specdiag analyze'")
PLAN = Kind("decay plan", 9, "entries", "make one with 'specdiag recommend -o'")
COMPARISON = Kind("comparison", 10, "reshaped", "make one with 'specdiag compare -o'")
AUDIT = Kind("audit", 8, "findings", "make one with 'specdiag audit -o'")
TRAJECTORY = Kind("trajectory", 6, "dropped", "make one with 'specdiag trajectory'")
LEDGER = Kind(
    "ledger of a trajectory", 3, "options", "delete its folder, and 'specdiag trajectory' analyses every step again"
)
SIMULATION = Kind("simulation", 2, "setting", "make one with specdiag.simulate")
NORM_CHECK = Kind("check of logged norms", 1, "left_out", "make one with 'specdiag simulate --check -o'")
WATCHED = Kind("list of watched modules", 4, "every", "log the norms anew with specdiag.optim.NormWatch")
REFERENCE = Kind("reference", 2, "ranges", "make one with 'specdiag reference build -o'")
RATES = Kind("plan of learning rates", 1, "rate_entries", "make one with 'specdiag recommend --what lr -o'")
KINDS = (REPORT, PLAN, RATES, COMPARISON, AUDIT, TRAJECTORY, LEDGER, SIMULATION, NORM_CHECK, WATCHED, REFERENCE)


class _Schema(msgspec.Struct):
    schema: int


_read_schema = json_decoder(_Schema)
_read_fields = json_decoder(dict[str, msgspec.Raw])


def read_record(path: Path, decode: Callable[[bytes], T], kind: Kind, *, limit: int = LIMIT) -> T:
    """Read a saved record.

    Args:
        path: the file.
        decode: made by `json_decoder`.
        kind: the kind of record.
        limit: bytes of the largest file that is read.

    Returns:
        The decoded record.

    Raises:
        SourceError: the file is missing, is no such record, or is of an older or newer schema.
    """
    try:
        data = read_whole(path, limit)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        schema = _read_schema(data).schema
        if schema < 1:
            raise msgspec.DecodeError(f"its schema is {shortened(str(schema), 30)}")
        if schema != kind.schema:
            if kind.field not in _read_fields(data):
                raise msgspec.DecodeError(f"it has no field '{kind.field}'")
            raise SourceError(_other_schema(path, kind, schema))
        return decode(data)
    except msgspec.DecodeError as error:
        other = _kind_of(data)
        if other is None or other is kind:
            raise SourceError(f"{path} is no {kind.name} ({error}); {kind.remedy}") from error
        raise SourceError(f"{path} is {one(other)}, not {one(kind)}: {kind.remedy}") from error


def kind_of_file(path: Path) -> Kind | None:
    """Tell the kind of a saved record, as it was written or formatted anew; None for any other file.

    Args:
        path: the file.
    """
    start = read_start(path, _N_START)
    if not start.lstrip().startswith(b"{"):
        return None
    try:
        return _kind_of(read_whole(path, LIMIT))
    except OSError:
        return None


def _kind_of(data: bytes) -> Kind | None:
    """Recognise the kind of a record by its fields; None where no kind has them."""
    try:
        fields = _read_fields(data)
    except msgspec.DecodeError:
        return None
    return next((kind for kind in KINDS if "schema" in fields and kind.field in fields), None)


def one(kind: Kind) -> str:
    """Name a kind with its article."""
    return f"{'an' if kind.name[0] in 'aeiou' else 'a'} {kind.name}"


def _other_schema(path: Path, kind: Kind, schema: int) -> str:
    number = shortened(str(schema), 30)
    remedy = "upgrade specdiag" if schema > kind.schema else kind.remedy
    return f"{path} is a {kind.name} of schema {number}; this specdiag reads schema {kind.schema}: {remedy}"
