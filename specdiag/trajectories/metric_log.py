"""The one long form of logs: `step, module, metric, value`, one JSON object a line, appended to and never rewritten.

Trajectories, training callbacks and predictions write it, one process at a time, for which they wait; plots read it. A
process that is killed while it writes leaves half a line at the end: readers pass over it, and the next writer removes
it. Where a step was measured twice, the later line holds.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.files import json_decoder, read_whole
from specdiag.records import Record

LOG_NAME = "specdiag_log.jsonl"
"""Name of the file in a run's directory."""

RUN = ""
"""The module of what is true of the whole network, such as its loss."""

LIMIT = 1 << 30
"""Bytes of the largest log that is read: some ten million entries."""
_TAIL = 1 << 16


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
    """An entry; what is not finite becomes None."""
    return LogEntry(step=step, module=module, metric=metric, value=float(value) if math.isfinite(value) else None)


def append_log(path: str | os.PathLike[str], entries: Iterable[LogEntry]) -> None:
    """Add entries to a log, in one synced write; half a line that a killed process left is removed first.

    Args:
        path: the log; made if it is not there.
        entries: what to add, in order.

    Raises:
        UsageError: the file cannot be opened for writing.
        ComputationError: writing failed, as on a full disk; nothing of it is kept.
    """
    path = Path(path)
    data = b"".join(msgspec.json.encode(e) + b"\n" for e in entries)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        end = _whole_lines(file.seek(0, os.SEEK_END), descriptor)
        try:
            file.truncate(end)
            file.seek(end)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(descriptor)
        except OSError as error:
            file.truncate(end)
            raise ComputationError(f"writing {path} failed: {error.strerror}; free space and go on") from error


def read_log(path: str | os.PathLike[str]) -> list[LogEntry]:
    """Every entry of a log, in the order of writing; half a line at the end is passed over.

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
    """Keep the last entry of each step, module and metric; by step, then in the order of first appearance."""
    last = {(e.step, e.module, e.metric): e for e in entries}
    return sorted(last.values(), key=lambda e: e.step)


def _whole_lines(size: int, descriptor: int) -> int:
    """The length of a file up to and with its last newline."""
    end = size
    while end > 0:
        start = max(0, end - _TAIL)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
