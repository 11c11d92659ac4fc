"""Entries by name in a folder that several processes may share: checked when read, oldest first out when full."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from specdiag.resources import parse_size

_log = logging.getLogger("specdiag")

LIMIT = 2 << 30
"""Bytes that all entries may take: the results of some 250 models of 7 B."""
_KEEP = 0.9
"""Share of the limit that is left after throwing out, so that the next analysis need not throw out again."""
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_ENDING = ".result"


def default_folder() -> Path | None:
    """`$SPECDIAG_CACHE`, else `specdiag` in the user's cache directory.

    None where the variable is set and empty, or a user without a home directory did not set it.
    """
    named = os.environ.get("SPECDIAG_CACHE")
    if named is not None:
        return Path(named).expanduser() if named else None
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "specdiag"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "specdiag"


class Store:
    """A folder of entries. Nothing that is wrong with it is an error: an entry that cannot be read is not there.

    Attributes:
        n_damaged: entries that were found but could not be read, or did not have their checksum.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: made with the first entry; others' files in it are left alone.

        Raises:
            UsageError: `$SPECDIAG_CACHE_SIZE` is no size.
        """
        self.n_damaged = 0
        self._folder = folder / "results"
        size = os.environ.get("SPECDIAG_CACHE_SIZE")
        self._limit = parse_size(size) if size else LIMIT
        self._lock = threading.Lock()
        self._has_written = False
        self._is_writable = True

    def get(self, name: str) -> bytes | None:
        """The content of an entry, None where there is none or it is damaged. To read an entry makes it young."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._damaged(path, error.strerror or str(error))
        content = data[_CHECKSUM_BYTES:]
        if data[:_CHECKSUM_BYTES] != _checksum(name, content):
            return self._damaged(path, "its checksum is wrong")
        with contextlib.suppress(OSError):  # another process threw it out, or the disk is read-only
            os.utime(path)
        return content

    def put(self, name: str, content: bytes) -> None:
        """Write an entry whole or not at all. Where that is not possible, it is said once, and not tried again."""
        if not self._is_writable:
            return
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=_ENDING)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_checksum(name, content) + content)
                Path(temporary).replace(path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._refused(error)
            return
        self._has_written = True

    def trim(self) -> None:
        """Where this process has written and the limit is passed, throw out the entries that were read longest ago."""
        if not self._has_written:
            return
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        if total <= self._limit:
            return
        for _, size, path in entries:
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours: the next one goes
                path.unlink()
            total -= size
            if total <= _KEEP * self._limit:
                return

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Time, size and place of all; with what a killed process left half written."""
        for path in self._folder.glob(f"??/*{_ENDING}"):
            with contextlib.suppress(FileNotFoundError):  # another process threw it out
                stat = path.stat()
                yield stat.st_mtime_ns, stat.st_size, path

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}{_ENDING}"

    def _damaged(self, path: Path, why: str) -> None:
        with self._lock:
            self.n_damaged += 1
            say = _log.warning if self.n_damaged == 1 else _log.debug
        say("the kept result %s is damaged (%s): computed anew", path, why)

    def _refused(self, error: OSError) -> None:
        with self._lock:
            is_first, self._is_writable = self._is_writable, False
        if is_first:
            _log.warning("results cannot be kept in %s (%s): the analysis goes on", self._folder, error.strerror)


def _checksum(name: str, content: bytes) -> bytes:
    """Of the content under its name: an entry copied to another name is damaged too."""
    return hashlib.sha256(name.encode() + content).digest()
