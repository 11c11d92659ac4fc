"""Checksums of the stored members of a zip archive, compared when their values are read.

torch.load does not compare them. A member that is read whole costs one CRC over the buffer. A member of which only
parts are read, such as the experts of a stack, is read once more, at the first of them.
"""

from __future__ import annotations

import threading
import zipfile
import zlib
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.plain_values import read_range
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_AT_ONCE = 1 << 24


def differs(entry: zipfile.ZipInfo, crc: int) -> bool:
    """Tell whether bytes differ from those that were saved. A checksum of 0 means that torch saved without one.

    Args:
        entry: the member of the archive, with its checksum.
        crc: CRC-32 of the bytes that were read.
    """
    return entry.CRC not in (0, crc)


@dataclass(slots=True)
class Checksums:
    """The members of one archive.

    Attributes:
        path: the archive.
    """

    path: Path
    _members: list[tuple[int, int, zipfile.ZipInfo]] = field(
        default_factory=list[tuple[int, int, zipfile.ZipInfo]]
    )  # first byte, end, entry
    _damaged: dict[int, bool] = field(default_factory=dict[int, bool])
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def add(self, begin: int, end: int, entry: zipfile.ZipInfo) -> None:
        """Add a member, whose bytes lie from `begin` to `end` in the file.

        Args:
            begin: offset of its first byte.
            end: offset behind its last byte.
            entry: its record in the archive, with the checksum.
        """
        member = (begin, end, entry)
        if not self._members or begin > self._members[-1][0]:  # as torch.save writes them
            self._members.append(member)
        else:
            insort(self._members, member, key=lambda member: member[0])

    def damaged_member(self, offset: int, data: RawArray) -> str | None:
        """Compare the member that `data` was read from with its checksum.

        Args:
            offset: where in the file `data` begins.
            data: bytes of the file, of one member.

        Returns:
            The member's name where its bytes are not those that were saved, None where they are or nothing is known.

        Raises:
            SourceError: the rest of the member cannot be read.
        """
        place = bisect_right(self._members, offset, key=lambda member: member[0]) - 1
        if place < 0:
            return None
        begin, end, entry = self._members[place]
        if offset == begin and len(data) == end - begin:
            self._damaged[begin] = differs(entry, zlib.crc32(data.data))
        elif begin not in self._damaged:
            self._read(begin, end, entry)
        return entry.filename if self._damaged[begin] else None

    def refuse_damage(self, offset: int, data: RawArray, name: str, label: str) -> None:
        """Refuse the values of a tensor whose member is damaged.

        Args:
            offset: where in the file `data` begins.
            data: bytes of the file, of one member.
            name: of the tensor, for messages.
            label: the file's name in messages.

        Raises:
            SourceError: the member's bytes are not those that were saved, or the rest of it cannot be read.
        """
        member = self.damaged_member(offset, data)
        if member is not None:
            raise SourceError(
                f"'{label}' is damaged at '{brief(name)}': its bytes do not fit the checksum of {brief(member)!r}; "
                "fetch it again"
            )

    def _read(self, begin: int, end: int, entry: zipfile.ZipInfo) -> None:
        with self._reading:  # other threads want parts of the same member
            if begin in self._damaged:
                return
            crc = 0
            for at in range(begin, end, _AT_ONCE):
                part = np.empty(min(_AT_ONCE, end - at), np.uint8)
                read_range(self.path, str(self.path), at, part)
                crc = zlib.crc32(part.data, crc)
            self._damaged[begin] = differs(entry, crc)
