"""A file that a run writes again and again, such as nanoGPT's `ckpt.pt`: how it is found, and copied while whole."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from specdiag.checkpoint.fingerprint import fingerprint_files
from specdiag.checkpoint.formats import TORCH_SUFFIXES
from specdiag.checkpoint.weight_names import weight_files
from specdiag.errors import SourceError
from specdiag.text.names import listed

_OLD_SUFFIXES = (".pth.tar", ".th")
SUFFIXES = (*(suffix for suffix in TORCH_SUFFIXES if suffix not in (".bin", ".pt2")), *_OLD_SUFFIXES)
"""Ends of the names of files that may hold the step that they were written at."""
_NAMES = re.compile(
    r"(ckpt|checkpoint|model|state)|((ckpt|checkpoint|model|state)[-_.]?)?(last|latest)"
    r"([-_.]?(ckpt|checkpoint|model|state))?"
)
"""Names of such a file where others lie beside it."""
_PREFIX = ".copy-"
_ATTEMPTS = 5
_PAUSE = 0.2
_LISTED = 4


class NoStepError(SourceError):
    """The file can be read and does not say at which step it was written."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file that is written again and again, at one moment.

    Attributes:
        fingerprint: of the file at that moment.
        copy: a copy of it, which is read in its place; None where the file itself is read.
    """

    fingerprint: str
    copy: str | None = None


def rolling_file(source: Path) -> Path | None:
    """Find the file that a run writes again and again. It is looked for by its name alone.

    Args:
        source: the file, or a folder that holds no other weights, or calls one of them `ckpt`, `last` or `latest`.

    Raises:
        SourceError: several files may be it, or the folder cannot be listed.
    """
    if not source.is_dir():
        return source if source.is_file() and source.name.endswith(SUFFIXES) else None
    try:
        names = sorted(path.name for path in source.iterdir() if path.is_file())
    except OSError as error:
        raise SourceError(f"'{source}' cannot be listed: {error.strerror}") from error
    weights = [*weight_files(names), *(name for name in names if name.endswith(_OLD_SUFFIXES))]
    if not all(name.endswith(SUFFIXES) for name in weights):
        return None
    candidates = [name for name in weights if _NAMES.fullmatch(_stem(name))] or weights
    numbered = [name for name in candidates if _stem(name)[-1:].isdecimal()]
    if len(candidates) > 1 and len(numbered) < len(candidates):
        raise SourceError(
            f"'{source}' holds no checkpoint-N and no stepN, but {listed(candidates, _LISTED)}: give the one that the "
            "run writes again and again, or a glob of its checkpoints, in quotes"
        )
    return None if numbered or not candidates else source / candidates[0]


def _stem(name: str) -> str:
    """Take the suffix off a name."""
    return name.removesuffix(next(suffix for suffix in SUFFIXES if name.endswith(suffix)))


def identity(file: Path) -> str:
    """Identify what a file holds now by its size and time.

    Raises:
        SourceError: it is gone.
    """
    return fingerprint_files([(file.name, file)])


@contextmanager
def copied(file: Path, folder: Path) -> Generator[Content | None]:
    """Copy a file that may be written at this moment, with the config.json beside it.

    Args:
        file: the file.
        folder: where the copy lies until the end.

    Yields:
        The copy of what the file held all the while; None where it is being written.

    Raises:
        SourceError: it is gone, or no copy can be made.
    """
    _remove_left(folder)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    except OSError as error:
        raise SourceError(f"no copy of '{file}' can be made in '{folder}': {error.strerror}") from error
    try:
        with _held(scratch):
            yield _copy(file, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy(file: Path, folder: Path) -> Content | None:
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE if attempt else 0)
        before = identity(file)
        try:
            shutil.copy2(file, folder)
            with suppress(FileNotFoundError):
                shutil.copy2(file.parent / "config.json", folder)
        except OSError as error:
            raise SourceError(f"no copy of '{file}' can be made in '{folder.parent}': {error.strerror}") from error
        if identity(file) == before:
            return Content(before, str(folder / file.name))
    return None


@contextmanager
def _held(folder: Path) -> Generator[None]:
    """Mark a folder as that of a living process."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without such locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_left(folder: Path) -> None:
    """Remove the copies of processes that were killed."""
    for left in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
