"""What a checkpoint of ours holds, written last: a folder whose manifest does not fit was not finished, or changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from specdiag.records import Record

MANIFEST = "specdiag_manifest.json"

_ENDS = 1 << 20


class FileMark(Record, frozen=True, kw_only=True):
    """A file by its size and its ends: an optimizer of many gigabytes is not hashed whole at every save."""

    size: int
    ends: str
    """SHA-256 of the first and the last MiB."""


class Manifest(Record, frozen=True, kw_only=True):
    """Content of the manifest's file."""

    schema: int = 1
    files: dict[str, FileMark]


def mark(path: Path) -> FileMark:
    """The mark of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest.update(file.read(_ENDS))
        file.seek(max(size - _ENDS, 0))
        digest.update(file.read(_ENDS))
    return FileMark(size=size, ends=digest.hexdigest())


def write_manifest(folder: Path) -> None:
    """Sync every file of a folder to disk, and then a manifest of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    held = Manifest(files={path.relative_to(folder).as_posix(): mark(path) for path in files})
    target = folder / MANIFEST
    target.write_bytes(msgspec.json.encode(held))
    sync(target)
    sync(folder)


def manifest_defect(folder: Path) -> str | None:
    """In what a folder differs from its manifest; None where it has none or fits."""
    try:
        held = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, expected in held.files.items():
        try:
            found = mark(folder / name)
        except OSError:
            return f"no {name}"
        if found.size != expected.size:
            return f"{name} has {found.size} bytes, saved were {expected.size}"
        if found.ends != expected.ends:
            return f"{name} was changed after it was saved"
    return None


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
