"""A file or folder that a run writes again and again, such as nanoGPT's `ckpt.pt`: found, and copied while whole."""

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
from specdiag.checkpoint.weight_names import NOT_WEIGHTS, weight_files
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
_FOLDERS = re.compile(
    r"((ckpt|checkpoint|model|state|step)[-_.]?)?(last|latest)([-_.]?(ckpt|checkpoint|model|state))?(\.ckpt)?"
)
"""Names of such a folder."""
STEP_FILES = ("trainer_state.json", "meta.pt")
"""Files that hold the step of a folder, which a Trainer of Hugging Face and Lightning write after its weights."""
_PREFIX = ".copy-"
_ATTEMPTS = 5
_PAUSE = 0.2
_LISTED = 4


class NoStepError(SourceError):
    """The file can be read and does not say at which step it was written."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file or folder that is written again and again, at one moment.

    Attributes:
        fingerprint: of it at that moment.
        copy: a copy of it, which is read in its place; None where it is read itself.
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


def rolling_folder(source: Path) -> Path | None:
    """Find the folder that a run writes again and again: one called `last`, `latest`, `checkpoint-last` or alike.

    Args:
        source: the folder, or one that holds it.

    Raises:
        SourceError: several folders may be it, or the folder cannot be listed.
    """
    if not source.is_dir():
        return None
    if _is_rolling(source):
        return source
    try:
        found = sorted(path for path in source.iterdir() if _is_rolling(path))
    except OSError as error:
        raise SourceError(f"'{source}' cannot be listed: {error.strerror}") from error
    if len(found) > 1:
        raise SourceError(
            f"'{source}' holds no checkpoint-N and no stepN, but {listed([path.name for path in found], _LISTED)}: "
            "give the one that the run writes again and again"
        )
    return found[0] if found else None


def _is_rolling(path: Path) -> bool:
    return bool(_FOLDERS.fullmatch(path.name)) and any((path / name).is_file() for name in STEP_FILES)


def _stem(name: str) -> str:
    """Take the suffix off a name."""
    return name.removesuffix(next(suffix for suffix in SUFFIXES if name.endswith(suffix)))


def identity(path: Path) -> str:
    """Identify what a file or a folder holds now by sizes and times.

    Raises:
        SourceError: it is gone.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return fingerprint_files((str(file.relative_to(path.parent)), file) for file in files)


@contextmanager
def copied(file: Path, folder: Path) -> Generator[Content | None]:
    """Copy a file that may be written at this moment, with the config.json beside it, or a folder of such files.

    Args:
        file: the file or folder.
        folder: where the copy lies until the end.

    Yields:
        The copy of what it held all the while; None where it is being written.

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
            if file.is_dir():
                shutil.rmtree(folder / file.name, ignore_errors=True)
                shutil.copytree(file, folder / file.name, ignore=_without_weights)
            else:
                shutil.copy2(file, folder)
                with suppress(FileNotFoundError):
                    shutil.copy2(file.parent / "config.json", folder)
        except OSError as error:
            if file.is_dir() and identity(file) != before:
                continue
            reason = error.strerror or str(error)
            raise SourceError(f"no copy of '{file}' can be made in '{folder.parent}': {reason}") from error
        if identity(file) == before:
            return Content(before, str(folder / file.name))
    return None


def _without_weights(folder: str, names: list[str]) -> list[str]:
    """Choose the files of an optimizer and its like, which are not copied; the partitions of ZeRO-3 are weights too."""
    return [name for name in names if NOT_WEIGHTS.match(name) and not name.endswith("_optim_states.pt")]


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
