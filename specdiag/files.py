"""Small files that are read whole: JSON, TOML and what else people and programs write beside weights."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

TEXT_LIMIT = 64 << 20
"""Bytes of the largest file that is read whole. A report of 100,000 matrices has about 60 MB."""


def read_whole(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> bytes:
    """All bytes of a regular file.

    A pipe would block, a device would never end, and a sparse file would fill the memory: all three are refused before
    a byte is read.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        OSError: it cannot be read; `strerror` says why in words that fit behind "cannot be read:".

    Example:
        >>> read_whole("/dev/null")
        Traceback (most recent call last):
        OSError: [Errno 22] it is not a regular file: '/dev/null'
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        held = os.fstat(handle)
        if stat.S_ISDIR(held.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(held.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        if held.st_size > limit:
            size = f"it has {held.st_size / 2**20:.0f} MiB, and at most {limit / 2**20:.0f} MiB are read"
            raise OSError(errno.EFBIG, size, os.fspath(path))
        return file.read(limit)


def is_regular(path: Path) -> bool:
    """Whether opening `path` reaches bytes that end: a file, or a link to one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False
