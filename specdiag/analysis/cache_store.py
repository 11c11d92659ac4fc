"""Entries by name in a folder that several processes may share: checked when read, oldest first out when full."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from specdiag.analysis.cache_ownership import ForeignFolderError, check_folder, is_trusted, make_folder
from specdiag.errors import UsageError
from specdiag.files import create_unique
from specdiag.resources import parse_size

_log = logging.getLogger("specdiag")

LIMIT = 2 << 30
"""Bytes that all entries may take: the results of some 250 models of 7 B."""
_LARGEST = 256 << 20
"""Bytes of one entry."""
_KEEP = 0.9
"""Share of the limit that is left after throwing out, so that the next analysis need not throw out again."""
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_ENDING = ".result"
_OWN = re.compile(r"[0-9a-f]{2}/(?:[0-9a-f]{64}|tmp[0-9a-f]{8})\.result")
"""Entries by their place in the folder, and those that a killed process left half written."""


def default_folder() -> Path | None:
    """`$SPECDIAG_CACHE`, else `specdiag` in the user's cache directory.

    None where the variable is set and empty, or a user without a home directory did not set it.

    Raises:
        UsageError: the variable names the home directory of a user that does not exist.
    """
    named = os.environ.get("SPECDIAG_CACHE")
    if named is not None:
        return _expanded(named) if named else None
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "specdiag"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "specdiag"


def _expanded(named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"SPECDIAG_CACHE is '{named}', and there is no such user or home directory: name another folder, or set it "
            "to nothing for no cache"
        ) from error


class Amount(NamedTuple):
    """Entries and the bytes that they take."""

    entries: int
    bytes: int


class Store:
    """A folder of entries. What is wrong with an entry is no error: then it is not there.

    Attributes:
        limit: bytes that all entries may take.
        n_damaged: entries that were found but could not be read, or did not have their checksum.
    """

    def __init__(self, folder: Path) -> None:
        """Check who may write to the folder.

        Args:
            folder: made with the first entry; others' files in it are left alone.

        Raises:
            UsageError: everybody may write to the folder, or `$SPECDIAG_CACHE_SIZE` is no size.
        """
        self.n_damaged = 0
        self._root = folder
        self._folder = folder / "results"
        size = os.environ.get("SPECDIAG_CACHE_SIZE")
        self.limit = parse_size(size) if size else LIMIT
        self._lock = threading.Lock()
        self._has_written = False
        self._is_writable = True
        self._is_shared = False
        self._is_trusted = True
        try:
            self._is_shared = check_folder(folder)
            check_folder(self._folder)
        except ForeignFolderError as error:
            self._is_trusted = False
            _log.warning("results are neither kept in %s nor taken from it: %s", folder, error)
        except UsageError:
            raise
        except ValueError as error:  # a NUL in its name
            raise UsageError(f"no folder can be called {str(folder)!r}: name another one for the cache") from error

    def get(self, name: str) -> bytes | None:
        """The content of an entry, None where there is none for this user, or it is damaged.

        To read an entry makes it young.
        """
        path = self._path(name)
        try:
            data = self._read(path) if self._is_trusted else None
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except OSError as error:
            return self.damaged(name, error.strerror or str(error))
        if data is None:
            return None
        content = data[_CHECKSUM_BYTES:]
        if data[:_CHECKSUM_BYTES] != _checksum(name, content):
            return self.damaged(name, "its checksum is wrong")
        with contextlib.suppress(OSError):  # another process threw it out, or the disk is read-only
            os.utime(path)
        return content

    def put(self, name: str, content: bytes) -> None:
        """Write an entry whole or not at all. Where that fails, warn once and write no more."""
        if not (self._is_writable and self._is_trusted):
            return
        path = self._path(name)
        try:
            self._make_folders(path.parent)
            handle, temporary = create_unique(path.parent, suffix=_ENDING, mode=0o644)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_checksum(name, content) + content)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        except OSError as error:
            self._refused(error)
            return
        self._has_written = True

    def damaged(self, name: str, why: str) -> None:
        """Warn of the first damaged entry. Each is computed anew and replaced."""
        with self._lock:
            self.n_damaged += 1
            say = _log.warning if self.n_damaged == 1 else _log.debug
        say("the kept result %s is damaged (%s): computed anew", self._path(name), why)

    def trim(self) -> None:
        """Where this process has written and the limit is passed, throw out the entries that were read longest ago."""
        if self._has_written and self.amount().bytes > self.limit:
            self.prune(int(_KEEP * self.limit))

    def amount(self) -> Amount:
        """Count all entries."""
        sizes = [size for _, size, _ in self._entries()]
        return Amount(len(sizes), sum(sizes))

    def oldest(self) -> float | None:
        """Seconds since the epoch at which the oldest entry was read; None where there is none."""
        return min((nanoseconds / 1e9 for nanoseconds, _, _ in self._entries()), default=None)

    def prune(self, limit: int) -> Amount:
        """Throw out the entries that were read longest ago until the others take no more than a limit.

        Args:
            limit: bytes; 0 for none at all.

        Returns:
            The removed amount. An entry that may not be removed counts as gone, so that no other goes in its place.
        """
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        removed = Amount(0, 0)
        for _, size, path in entries:
            if total <= limit:
                break
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours: the next one goes
                path.unlink()
                removed = Amount(removed.entries + 1, removed.bytes + size)
            total -= size
        return removed

    def _read(self, path: Path) -> bytes | None:
        """The bytes of an entry, None where somebody wrote it who is not trusted."""
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        held = os.fstat(handle)
        is_file = stat.S_ISREG(held.st_mode) and held.st_size <= _LARGEST
        if is_file and is_trusted(held, shared=self._is_shared):
            with os.fdopen(handle, "rb") as file:
                return file.read(_LARGEST)
        os.close(handle)
        if not is_file:
            return self.damaged(path.stem, "it is no file of a result")
        _log.debug("the kept result %s is of user %s: not taken", path, held.st_uid)
        return None

    def _make_folders(self, folder: Path) -> None:
        if not folder.is_dir():
            self._root.parent.mkdir(parents=True, exist_ok=True)
            for each in (self._root, self._folder, folder):
                make_folder(each, shared=self._is_shared)

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """Time, size and place of all. Other files and links in the folder are none of ours."""
        for path in self._folder.glob(f"??/*{_ENDING}"):
            with contextlib.suppress(OSError):  # another process threw it out
                held = path.lstat()
                own = _OWN.fullmatch(f"{path.parent.name}/{path.name}") and not path.parent.is_symlink()
                if own and stat.S_ISREG(held.st_mode):
                    yield held.st_mtime_ns, held.st_size, path

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}{_ENDING}"

    def _refused(self, error: OSError) -> None:
        with self._lock:
            is_first, self._is_writable = self._is_writable, False
        if is_first:
            _log.warning("results cannot be kept in %s (%s): the analysis goes on", self._folder, error.strerror)


def _checksum(name: str, content: bytes) -> bytes:
    """Hash the content with its name, so that an entry copied to another name counts as damaged."""
    return hashlib.sha256(name.encode() + content).digest()
