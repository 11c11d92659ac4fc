"""The log of a run: one JSON object `step, module, metric, value` per line, appended to and never rewritten.

Trajectories, training callbacks and predictions write it, and wait for each other; plots read it. A process that is
killed while it writes leaves half a line at the end: readers ignore it, and the next writer removes it. If a step was
measured twice, the later line counts.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from specdiag.errors import SourceError, UsageError
from specdiag.files import json_decoder, read_whole
from specdiag.records import Record
from specdiag.storage.lines import append_lines

LOG_NAME = "specdiag_log.jsonl"
"""Name of the file in a run's directory."""
NORMS_NAME = "specdiag_norms"
"""Name of the folder in a run in which a norm watch keeps its own log."""

RUN = ""
"""The `module` of metrics of the whole network, such as the loss."""

LIMIT = 1 << 30
"""Size in bytes of the largest log that is read: some ten million entries."""


class LogEntry(Record, frozen=True, kw_only=True):
    """A number of one module at one step of a run."""

    step: int
    module: str
    """Key of a matrix; empty for the whole network."""
    metric: str
    value: float | None
    """None for NaN and infinity, which JSON does not have."""


_decode = json_decoder(LogEntry)


def entry(step: int, module: str, metric: str, value: float) -> LogEntry:
    """Make an entry of a log.

    Args:
        step: step of the run.
        module: key of a matrix, or `RUN`.
        metric: name of the number.
        value: NaN and infinity become None.
    """
    return LogEntry(step=step, module=module, metric=metric, value=float(value) if math.isfinite(value) else None)


def append_log(path: str | os.PathLike[str], entries: Iterable[LogEntry]) -> None:
    """Add entries to a log in one synced write. Half a line that a killed process left is removed first.

    Args:
        path: file of the log; created if it does not exist.
        entries: entries in the order of writing.

    Raises:
        UsageError: the file cannot be opened for writing.
        ComputationError: writing failed, for instance on a full disk; none of the entries is kept.
    """
    path = Path(path)
    data = b"".join(msgspec.json.encode(e) + b"\n" for e in entries)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+b", buffering=0):
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        append_lines(descriptor, path, data)


def read_log(path: str | os.PathLike[str]) -> list[LogEntry]:
    """Read every entry of a log in the order of writing. Half a line at the end is ignored.

    Raises:
        SourceError: there is no such file, it is larger than `LIMIT`, or a line is no entry.
    """
    path = Path(path)
    try:
        data = read_whole(path, LIMIT)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    entries: list[LogEntry] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            entries.append(_decode(line))
        except msgspec.DecodeError as error:
            raise SourceError(f"{path}, line {number}: no log entry ({error}); delete that line") from error
    return entries


def latest(entries: Iterable[LogEntry]) -> list[LogEntry]:
    """Keep the last entry of each step, module and metric.

    Args:
        entries: entries in the order of writing.

    Returns:
        Entries by step, and within a step in the order in which their keys first appeared.
    """
    last = {(e.step, e.module, e.metric): e for e in entries}
    return sorted(last.values(), key=lambda e: e.step)
