"""Where the bytes of a folder's files come from: this machine, or the hub."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from specdiag.checkpoint.archives import written_by_torch
from specdiag.checkpoint.formats import list_file
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError
from specdiag.files import read_whole


class Files(Protocol):
    """Files of one folder by name, with `/` between folders."""

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        ...

    def broken(self, name: str) -> str | None:
        """Describe a link that leads to no file, as the end of a sentence; None for any other name."""
        ...

    def is_torch(self, name: str) -> bool:
        """Tell whether torch wrote a file, by its content; False where that is not here."""
        ...

    def fetch(self, names: Sequence[str], /) -> None:
        """Make files ready to be read, such as by downloading them.

        Args:
            names: the files.

        Raises:
            UsageError: a file cannot be streamed, and has to be downloaded.
            SourceError: a file is of a kind that is not supported, or cannot be fetched.
        """
        ...

    def path(self, name: str, /) -> Path:
        """Find a file that was fetched on this machine.

        Args:
            name: the file.

        Raises:
            UsageError: it is streamed, and lies nowhere here.
        """
        ...

    def read(self, name: str, label: str) -> bytes:
        """Read all of a small file.

        Args:
            name: the file.
            label: its name in messages.

        Raises:
            SourceError: it cannot be read.
        """
        ...

    def list(self, name: str, label: str, part: str | None = None) -> Listing:
        """List the tensors of a file of weights.

        Args:
            name: the file.
            label: its name in messages.
            part: which of several models in it, where its format keeps them apart.

        Raises:
            UsageError: it cannot be streamed, and has to be downloaded.
            SourceError: it cannot be read, is damaged, or is of no supported format.
        """
        ...


def broken_link(path: Path) -> str | None:
    """Describe a link that leads to no file.

    Args:
        path: any path.

    Returns:
        The end of a sentence that begins with the name and "is"; None where the path is no such link.
    """
    if exists(path) or not path.is_symlink():
        return None
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return f"a link to '{path.readlink()}', which leads in a circle"
    return f"a link to '{path.readlink()}', which does not exist"


def exists(path: Path) -> bool:
    """Tell whether there is a file or folder at `path`; False for names that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _nothing(names: Sequence[str]) -> None:
    """Do nothing: a local directory has its files already."""


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files below a directory, some of them perhaps still to be downloaded.

    Attributes:
        root: the directory.
        fetch: brings the named files there.
    """

    root: Path
    fetch: Callable[[Sequence[str]], None] = _nothing

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name. One that is still to be downloaded is not there yet."""
        return exists(self.root / name)

    def broken(self, name: str) -> str | None:
        """Describe a link that leads to no file, as the end of a sentence; None for any other name."""
        return broken_link(self.root / name)

    def is_torch(self, name: str) -> bool:
        """Tell whether torch wrote a file, by its content; False where that is not here."""
        return written_by_torch(self.root / name)

    def path(self, name: str) -> Path:
        """Find a file below `root`."""
        return self.root / name

    def read(self, name: str, label: str) -> bytes:
        """Read all of a small file.

        Args:
            name: the file, relative to `root`.
            label: its name in messages.

        Raises:
            SourceError: it cannot be read.
        """
        try:
            return read_whole(self.root / name)
        except OSError as error:
            raise SourceError(f"'{brief(label, 400)}' cannot be read: {error.strerror}") from error

    def list(self, name: str, label: str, part: str | None = None) -> Listing:
        """List the tensors of a file of weights.

        Args:
            name: the file, relative to `root`.
            label: its name in messages.
            part: which of several models in it, where its format keeps them apart.

        Raises:
            SourceError: it is unreadable, damaged, unsupported, or not a file of weights.
            MissingExtraError: it holds quantised weights that only an optional dependency decodes.
        """
        return list_file(self.root / name, label, part)
