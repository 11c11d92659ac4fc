"""A list of sources in a file, one a line."""

from __future__ import annotations

import sys
from pathlib import Path

from specdiag.errors import UsageError

STDIN = Path("-")
_COMMENT = "#"


def read(path: Path) -> list[str]:
    """The sources of a file in their order, each once. Empty lines, and those that begin with #, are passed over.

    Args:
        path: the file, which may be a pipe; - for stdin.

    Raises:
        UsageError: it cannot be read, names no source, or a line is none.
    """
    name = "stdin" if path == STDIN else str(path)
    sources: dict[str, None] = {}
    for number, line in enumerate(_content(path, name).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if (source := _source(line, f"{name}, line {number}")) is not None:
            sources[source] = None
    if not sources:
        raise UsageError(f"{name} names no source: write one a line, such as org/name or a path")
    return list(sources)


def _content(path: Path, name: str) -> bytes:
    from specdiag.files import TEXT_LIMIT

    try:
        if path == STDIN:
            data = sys.stdin.buffer.read(TEXT_LIMIT + 1)
        else:
            with path.open("rb") as file:  # of a shell's <(...) too, which is a pipe
                data = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    if len(data) > TEXT_LIMIT:
        raise UsageError(f"{name} has more than {TEXT_LIMIT >> 20} MiB, which no list of sources has")
    return data


def _source(line: bytes, where: str) -> str | None:
    from specdiag.checkpoint.opening import is_location

    try:
        text = line.decode().strip()
        if not text or text.startswith(_COMMENT):
            return None
        is_location(text)
    except (UnicodeDecodeError, UsageError) as error:
        problem = "it is no UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UsageError(f"{where}: {problem}") from error
    return text
