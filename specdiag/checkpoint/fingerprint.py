"""Fingerprints of local files of weights, made from names, sizes and times without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from specdiag.errors import SourceError
from specdiag.records import Source


def fingerprint(source: Source) -> str | None:
    """Hash names, sizes and times of the files of a source, and of its base model where that is local.

    Args:
        source: where a checkpoint came from.

    Returns:
        SHA-256 in hexadecimal digits. None for the hub, where the commit identifies the files, and for a model in
        memory, which can change at any time.

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
    return fingerprint_files((path.name, path) for path in paths)


def fingerprint_files(files: Iterable[tuple[str, Path]]) -> str:
    """Hash the names, sizes and times of files.

    Args:
        files: the name to hash and the path of each file.

    Returns:
        SHA-256 in hexadecimal digits.

    Raises:
        SourceError: one is gone.
    """
    try:
        stats = [(name, path.stat()) for name, path in files]
    except OSError as error:
        raise SourceError(f"'{error.filename}' cannot be looked at: {error.strerror}") from error
    listed = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
    return hashlib.sha256(listed.encode()).hexdigest()
