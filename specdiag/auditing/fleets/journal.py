"""The journal beside a fleet's table: the rows of every model that is done, a line each, until the table is written."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec

from specdiag.auditing.fleets.rows import FleetRow, are_whole
from specdiag.errors import SourceError, UsageError
from specdiag.files import json_decoder
from specdiag.storage.lines import append_lines, end_of_lines

LONGEST = 1 << 28
"""Bytes of the longest line that is read: a model of half a million findings."""
_BLOCK = 1 << 20


class Journal:
    """The rows of the models that are done, in a file that this process alone writes; in memory are their places alone.

    A line that a killed process left half written is ignored. If a model was audited twice, the later rows count.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Args:
            path: the file.

        Raises:
            UsageError: it cannot be written, or another process writes it.
            SourceError: a line of it holds no rows.
        """
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._descriptor = _opened(path)
        try:
            self._find()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Hold the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let other processes write."""
        self.close()

    def __contains__(self, source: str) -> bool:
        """Tell whether a model is done."""
        return source in self._places

    def __len__(self) -> int:
        """Count the models that are done."""
        return len(self._places)

    def rows(self, source: str) -> tuple[FleetRow, ...]:
        """Read the rows of a model that is done.

        Args:
            source: as it was named.
        """
        offset, length = self._places[source]
        return _decode(os.pread(self._descriptor, length, offset))

    def add(self, *models: Sequence[FleetRow]) -> None:
        """Keep the rows of models: they are on disk when this returns.

        Args:
            models: the rows of each.

        Raises:
            ComputationError: the disk is full.
        """
        lines = [msgspec.json.encode(rows) + b"\n" for rows in models]
        offset = append_lines(self._descriptor, self._path, b"".join(lines))
        for rows, line in zip(models, lines, strict=True):
            self._places[rows[0].source] = offset, len(line)
            offset += len(line)

    def close(self) -> None:
        """Let other processes write. Nothing is left where nothing is done."""
        if self._descriptor < 0:
            return
        if not os.fstat(self._descriptor).st_size:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def remove(self) -> None:
        """Delete the file, now that its rows are in the table."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def _find(self) -> None:
        """Find the lines, without keeping what they hold."""
        end, offset, number = end_of_lines(self._descriptor), 0, 0
        while offset < end:
            line = self._line(offset)
            number += 1
            try:
                rows = _decode(line)
            except msgspec.DecodeError as error:
                raise self._damaged(number, str(error)) from error
            if not rows or not are_whole(rows):
                raise self._damaged(number, "its rows are not those of one model")
            self._places[rows[0].source] = offset, len(line)
            offset += len(line)

    def _line(self, offset: int) -> bytes:
        parts: list[bytes] = []
        while sum(map(len, parts)) <= LONGEST:
            block = os.pread(self._descriptor, _BLOCK, offset + sum(map(len, parts)))
            line, newline, _ = block.partition(b"\n")
            parts.append(line + newline)
            if newline:
                return b"".join(parts)
            if not block:
                break
        raise SourceError(f"{self._path} has a line of more than {LONGEST >> 20} MiB: delete it")

    def _damaged(self, number: int, problem: str) -> SourceError:
        return SourceError(f"{self._path}, line {number}: no rows of a model ({problem}); delete that line")


def _opened(path: Path) -> int:
    """Open the file, kept from other processes."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError(f"cannot write {path}: it is no regular file; delete it, or name another file")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise UsageError(f"another process writes {path}: wait for its end, or name another file") from error
            return descriptor  # on a file system without such locks
        if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)  # the process that wrote it has just removed it


_decode = json_decoder(tuple[FleetRow, ...])
