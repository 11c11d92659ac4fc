"""Fingerprints of local files of weights, made from names, sizes and times without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from specdiag.errors import SourceError
from specdiag.records import Source


def fingerprint(source: Source) -> str | None:
    """Hash sizes and times of the chosen files and of a local base model's; None for other sources.

    On the hub the commit says what it is. A model in memory can change at any time.

    Raises:
        SourceError: a file is gone.
    """
    if source.kind not in ("dir", "file"):
        return None
    root = Path(source.location) if source.kind == "dir" else Path(source.location).parent
    paths = [root / name for name in source.files]
    if source.base is not None and Path(source.base).exists():
        base = Path(source.base)
        paths += sorted(path for path in base.iterdir() if path.is_file()) if base.is_dir() else [base]
    return of_files((path.name, path) for path in paths)


def of_files(named: Iterable[tuple[str, Path]]) -> str:
    """Hash the names, sizes and times of files.

    Raises:
        SourceError: one is gone.
    """
    try:
        stats = [(name, path.stat()) for name, path in named]
    except OSError as error:
        raise SourceError(f"'{error.filename}' cannot be looked at: {error.strerror}") from error
    listed = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return hashlib.sha256(listed.encode()).hexdigest()
