"""Where the bytes of a folder's files come from: this machine, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from specdiag.checkpoint.listing import Listing, list_file
from specdiag.errors import SourceError


class Files(Protocol):
    """Files of one folder by name, with `/` between folders."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def fetch(self, names: Sequence[str], /) -> None:
        """Make files ready to be read, or refuse the kind that they are."""
        ...

    def read(self, name: str, label: str) -> bytes:
        """All of a small file."""
        ...

    def list(self, name: str, label: str) -> Listing:
        """What a file of weights holds."""
        ...


def _nothing(names: Sequence[str]) -> None:
    """A local directory has its files already."""


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
        """Whether there is such a file; of those to be downloaded, whether it is there already."""
        return (self.root / name).exists()

    def read(self, name: str, label: str) -> bytes:
        """All of a small file.

        Raises:
            SourceError: it cannot be read.
        """
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error

    def list(self, name: str, label: str) -> Listing:
        """What a file of weights holds. Errors as of `list_file`."""
        return list_file(self.root / name, label)
