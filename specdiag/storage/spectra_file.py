"""The eigenvalues beside a saved report, `X.spectra.safetensors`: read and checked when they are first asked for.

They are first written to a file named after their digest. Once the report with this digest is written, that file gets
its final name. So both the old report and the new one find their eigenvalues at any moment.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import SourceError
from specdiag.files import is_stream, read_whole, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LARGEST = 16 << 30
_HEADER = 1 << 20
_HEADER_EACH = 256
"""Bytes of the file's header beside its names."""


class SavedSpectra(Mapping[str, "NDArray[np.float64]"]):
    """Spectra by key. The file is read once, whole, so that what was checked is what is used.

    Every access raises SourceError where the file cannot be read, has another digest, or holds no such spectra.
    """

    def __init__(self, path: Path, digest: str, sizes: Mapping[str, int], optional: Mapping[str, int]) -> None:
        """Remember where the spectra are; nothing is read yet.

        Args:
            path: the file.
            digest: SHA-256 that its report holds.
            sizes: eigenvalues of each spectrum that must be there, by key.
            optional: eigenvalues of each spectrum that may be there, by key.
        """
        self._path = path
        self._digest = digest
        self._sizes = sizes
        self._optional = optional

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self._spectra[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spectra)

    def __len__(self) -> int:
        return len(self._spectra)

    @cached_property
    def _spectra(self) -> dict[str, NDArray[np.float64]]:
        spectra = self._parsed(self._read())
        missing = self._sizes.keys() - spectra.keys()
        if missing:
            raise self._refused(f"has no eigenvalues of '{min(missing)}'")
        for name, expected in (*self._sizes.items(), *self._optional.items()):
            if name in spectra and (problem := _problem(spectra[name], expected)):
                raise self._refused(f"is damaged: the eigenvalues of '{name}' {problem}")
        return spectra

    def _read(self) -> bytes:
        return self._read_pending() or self._read_settled()

    def _read_pending(self) -> bytes:
        """Read what an interrupted save left under its digest; nothing where there is no such file."""
        try:
            data = read_whole(_pending(self._path, self._digest), self._limit())
        except OSError:
            return b""
        return data if hashlib.sha256(data).hexdigest() == self._digest else b""

    def _read_settled(self) -> bytes:
        try:
            data = read_whole(self._path, self._limit())
        except OSError as error:
            raise SourceError(f"the eigenvalues in {self._path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != self._digest:
            raise self._refused("is not the file that was saved with this report (it has another SHA-256)")
        return data

    def _limit(self) -> int:
        """Compute the size of the largest file that these spectra may be in."""
        sizes = (*self._sizes.items(), *self._optional.items())
        return min(_LARGEST, _HEADER + sum(8 * max(n, 0) + 12 * len(name) + _HEADER_EACH for name, n in sizes))

    def _parsed(self, data: bytes) -> dict[str, NDArray[np.float64]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return load(data)
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:  # a type that numpy lacks
            raise self._refused(f"is no readable safetensors file ({error})") from error

    def _refused(self, problem: str) -> SourceError:
        return SourceError(f"{self._path} {problem}: copy both files of the report again, or analyze again")


def write_pending(path: Path, data: bytes, digest: str) -> None:
    """Write eigenvalues beside those of the report that is there, which stay readable.

    Args:
        path: the file that they will be in.
        data: its content.
        digest: SHA-256 of `data`.

    Raises:
        UsageError: the folder cannot be written.
        ComputationError: the disk is full.
    """
    write_atomically(path if is_stream(path) else _pending(path, digest), data)


def settle(path: Path, digest: str) -> None:
    """Give a file of eigenvalues its final name, once the report with their digest is written.

    Args:
        path: the file.
        digest: as for `write_pending`.
    """
    if not is_stream(path):
        _pending(path, digest).replace(path.resolve())


def is_there(path: Path, digest: str) -> bool:
    """Tell whether there is a file of eigenvalues, with its final name or not.

    Args:
        path: the file.
        digest: SHA-256 that the report holds.
    """
    return os.path.lexists(path) or _pending(path, digest).exists()


def _pending(path: Path, digest: str) -> Path:
    target = path.resolve()
    return target.with_name(f".{target.name}.{digest[:8]}")


def _problem(values: NDArray[np.float64], expected: int) -> str | None:
    """Explain why an array is not the ascending spectrum of so many eigenvalues."""
    import numpy as np

    if values.dtype != np.float64 or values.ndim != 1:
        return f"are {values.dtype} of {values.ndim} dimensions"
    if values.size != expected:
        return f"are {values.size}, and the report says {expected}"
    if not np.isfinite(values).all():
        return "are not all finite"
    if (values[0] < 0) or (np.diff(values) < 0).any():
        return "are negative or not in ascending order"
    return None
