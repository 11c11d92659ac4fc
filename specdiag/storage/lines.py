"""Files that grow by whole lines. Half a line at the end, of a killed process, is cut off by the next writer."""

from __future__ import annotations

import os
from pathlib import Path

from specdiag.errors import ComputationError

_TAIL = 1 << 16
"""Bytes that are read at once when the last newline is searched from the end."""


def append_lines(descriptor: int, path: Path, data: bytes) -> int:
    """Add lines to a file in one synced write, or none of them.

    Args:
        descriptor: of the file, open for reading and writing, and kept from other writers by the caller.
        path: its name in messages.
        data: lines, each with its newline.

    Returns:
        The place in the file at which they begin.

    Raises:
        ComputationError: writing failed, for instance on a full disk.
    """
    end = end_of_lines(descriptor)
    try:
        os.ftruncate(descriptor, end)
        left, place = memoryview(data), end
        while left:
            written = os.pwrite(descriptor, left, place)
            left, place = left[written:], place + written
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, end)
        raise ComputationError(f"writing {path} failed: {error.strerror}; free space and go on") from error
    return end


def end_of_lines(descriptor: int) -> int:
    """Find the number of bytes up to and including the last newline; 0 if there is none.

    Args:
        descriptor: of a file that is open for reading.
    """
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
