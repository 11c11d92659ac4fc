"""Manifest of a checkpoint, written last. A folder that differs from its manifest is unfinished or was changed."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path

import msgspec

from specdiag.files import json_decoder, open_regular, read_whole
from specdiag.records import Record

MANIFEST = "specdiag_manifest.json"

_ENDS = 1 << 20
_WITHOUT_CRC = (".safetensors",)


class FileMark(Record, frozen=True, kw_only=True):
    """Size and digest of a file. Only its ends are hashed, because hashing gigabytes at every save takes too long."""

    size: int
    ends: str
    """SHA-256 of the first and the last MiB."""
    crc: int | None = None
    """CRC-32 of the whole file; None for torch's zip files, which have their own."""


class Manifest(Record, frozen=True, kw_only=True):
    """Content of the manifest's file."""

    schema: int = 1
    files: dict[str, FileMark]


_decode = json_decoder(Manifest)


def mark(path: Path) -> FileMark:
    """Read size and ends of a file.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        digest.update(file.read(_ENDS))
        file.seek(max(size - _ENDS, 0))
        digest.update(file.read(_ENDS))
    return FileMark(size=size, ends=digest.hexdigest())


def write_manifest(folder: Path) -> None:
    """Sync every file of a folder to disk, then write and sync a manifest of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    manifest = Manifest(files={path.relative_to(folder).as_posix(): _mark_to_keep(path) for path in files})
    target = folder / MANIFEST
    target.write_bytes(msgspec.json.encode(manifest))
    sync(target)
    sync(folder)


def content_defect(folder: Path) -> str | None:
    """Describe the first file that differs from its checksum in the manifest; None if there is none."""
    try:
        manifest = _read(folder)
        for name, expected in manifest.files.items() if manifest is not None else ():
            if expected.crc is not None and _crc(folder / name) != expected.crc:
                return f"{name} was changed after it was saved (its checksum differs)"
    except (OSError, msgspec.DecodeError) as error:
        return f"it cannot be held against {MANIFEST} ({error})"
    return None


def manifest_defect(folder: Path) -> str | None:
    """Describe how a folder differs from its manifest; None if it does not differ, or has none."""
    try:
        manifest = _read(folder)
    except (OSError, msgspec.DecodeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, expected in manifest.files.items() if manifest is not None else ():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{MANIFEST} names {name}, which is outside of the checkpoint"
        try:
            current = mark(folder / name)
        except (OSError, ValueError):
            return f"no {name}"
        if current.size != expected.size:
            return f"{name} has {current.size} bytes, saved were {expected.size}"
        if current.ends != expected.ends:
            return f"{name} was changed after it was saved"
    return None


def _read(folder: Path) -> Manifest | None:
    try:
        return _decode(read_whole(folder / MANIFEST))
    except FileNotFoundError:
        return None


def _mark_to_keep(path: Path) -> FileMark:
    crc = _crc(path) if path.suffix in _WITHOUT_CRC else None
    return msgspec.structs.replace(mark(path), crc=crc)


def _crc(path: Path) -> int:
    crc = 0
    with open_regular(path) as file:
        while chunk := file.read(_ENDS):
            crc = zlib.crc32(chunk, crc)
    return crc


def sync(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
