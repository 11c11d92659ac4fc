"""Entries of the zip archives that torch writes: checked, and found in the file, without torch."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from specdiag.checkpoint.checksums import differs
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import WHOLE
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError

_CODE = re.compile(r"(^|/)code/|\.debug_pkl$")
_HEADER = struct.Struct("<4s22xHH")
"""Header of a member: its signature, and how long its name and extra field are."""


def is_zip(path: Path, label: str) -> bool:
    """Tell whether a file begins as a zip archive does.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error


def check_zip(path: Path, label: str, required: str | None = "data.pkl") -> list[zipfile.ZipInfo]:
    """Check that a zip archive is one that torch wrote, and that its values lie uncompressed within the file.

    Args:
        path: the file.
        label: its name in messages.
        required: base name of a member that such an archive has; None where another is looked for.

    Returns:
        The entries of its members.

    Raises:
        SourceError: it is damaged, or another kind of archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise SourceError(f"'{label}' is a damaged zip archive ({error}): fetch it again") from error
    if entries and min(entry.header_offset for entry in entries) > 0:
        raise SourceError(f"'{label}' holds several archives, a part of a distributed checkpoint: {WHOLE}")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) and (twice := duplicate(names)) is not None:
        raise SourceError(f"'{label}' is a damaged zip archive (two members '{brief(twice)}'): fetch it again")
    if required is not None and not any(entry.filename.rpartition("/")[2] == required for entry in entries):
        raise SourceError(f"'{label}' is a zip archive, but not one that torch.save wrote: unpack it first")
    # TorchScript compresses its code, which is not read.
    if any(entry.compress_type != zipfile.ZIP_STORED and not _CODE.search(entry.filename) for entry in entries):
        raise SourceError(f"'{label}' was compressed again after torch.save wrote it: fetch the original")
    if sum(entry.compress_size for entry in entries) > path.stat().st_size:
        raise SourceError(f"'{label}' is a damaged zip archive (entries overlap): fetch it again")
    return entries


def read_member(entry: zipfile.ZipInfo, file: BinaryIO, size: int) -> bytes:
    """Read all of a small member of an archive, and compare it with its checksum.

    Args:
        entry: the member.
        file: the archive.
        size: of the archive, bytes.

    Raises:
        BadZipFile: it is damaged.
    """
    begin, end = extent(entry, file, size)
    file.seek(begin)
    data = file.read(end - begin)
    if differs(entry, zlib.crc32(data)):
        raise damaged(entry.filename)
    return data


def damaged(member: str) -> zipfile.BadZipFile:
    """Make the error of a member whose bytes do not fit its checksum."""
    return zipfile.BadZipFile(f"the checksum of {member!r:.60} is another one")


def extent(entry: zipfile.ZipInfo, file: BinaryIO, size: int) -> tuple[int, int]:
    """Find the first byte of a stored member, past its own header, and the byte behind the last.

    Args:
        entry: the member.
        file: the archive.
        size: of the archive, bytes.

    Raises:
        BadZipFile: the archive is too short for it, or holds something else there.
    """
    file.seek(entry.header_offset)
    head = file.read(_HEADER.size)
    signature, name, extra = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0, 0)
    if signature != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"no header of {entry.filename!r:.60}")
    begin = entry.header_offset + _HEADER.size + name + extra
    end = begin + entry.file_size
    if end > size:
        raise zipfile.BadZipFile(f"{entry.filename!r:.60} reaches beyond the file")
    return begin, end
