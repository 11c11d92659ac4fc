"""Checks the CRCs in torch's zip files, which torch writes and does not check when it reads."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

from specdiag.errors import SourceError

_AT_ONCE = 1 << 20
_SIGNATURE = b"PK\x03\x04"


def zip_defect(path: Path) -> str | None:
    """Describe the damage of a zip file: of the archive, or of the first member that differs from its CRC.

    Args:
        path: file of torch.save.

    Returns:
        None if there is none, if the file is no zip file, or if it was saved without CRCs
        (`torch.serialization.set_crc32_options(False)`), which are zero then.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _SIGNATURE:
                return None
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if not any(member.CRC for member in members):
                return None
            return next((defect for m in members if (defect := _member_defect(archive, m)) is not None), None)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, struct.error) as error:
        return f"{path.name} is a damaged zip archive ({error})"


def check_zip(path: Path) -> None:
    """Raise SourceError if a member of a zip file differs from its CRC."""
    defect = zip_defect(path)
    if defect is not None:
        raise SourceError(f"{path}: {defect}; copy it again, or take an earlier checkpoint")


def _member_defect(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str | None:
    try:
        with archive.open(member) as file:
            while file.read(_AT_ONCE):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        return f"the member {member.filename} of {Path(archive.filename or '').name} is damaged ({error})"
    return None
