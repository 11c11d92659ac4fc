"""The standard streams, whatever they are: closed, full, gone, or of a terminal that knows no Unicode."""

from __future__ import annotations

import codecs
import errno
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from specdiag.text.printable import printable

_ASCII = {"·": ".", "±": "+-", "…": "...", "°": "", "σ": "sigma", "×": "x", "–": "-", "—": "-", "→": "->"}
_ERRORS = "specdiag.legible"
_LEAST = 20
"""Columns of the narrowest table."""

_unwritten: list[str] = []
"""Why stdout could not take what was printed."""
_closed: set[str] = set()
"""Streams that were closed before the process began."""


def prepare() -> None:
    """Give the process three streams that can be written to, before a file takes the number of one that is closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            _closed.add(name)
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
    settle()


def settle() -> None:
    """Let streams spell what they cannot encode, and drop a size of the terminal that is none."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ERRORS)  # pyright: ignore[reportAttributeAccessIssue]
    for name, least in (("COLUMNS", _LEAST), ("LINES", 1)):
        told = os.environ.get(name)
        if told is None:
            continue
        if re.fullmatch(r"0*[1-9][0-9]{0,4}", told):
            os.environ[name] = str(max(int(told), least))
        else:
            del os.environ[name]


def legible(text: str) -> str:
    """The text in one line of characters that stdout can show, and that no terminal obeys."""
    text = printable(text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text if text.isascii() else text.encode(encoding, _ERRORS).decode(encoding)


class Lasting:
    """A stream whose trouble is nobody's loss: what cannot be written is dropped, and remembered if it is stdout."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or lose it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            lose(self._stream, error)
            return len(text)

    def flush(self) -> None:
        """Flush, or lose what was left."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            lose(self._stream, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lose(stream: TextIO, error: Exception) -> None:
    """Point a broken stream at nothing, or the interpreter complains while it closes. A closed pipe is no failure."""
    if stream is sys.stdout and getattr(error, "errno", None) != errno.EPIPE:
        _unwritten.append(getattr(error, "strerror", None) or str(error))
    silence(stream)


def silence(stream: TextIO) -> None:
    """Let nothing more come out of a stream."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def write(data: bytes) -> None:
    """Bytes to stdout as they are."""
    if "stdout" in _closed:
        _unwritten.append("it is closed")
        return
    stdout = sys.stdout
    try:
        stdout.flush()
        stdout.buffer.write(data)
        stdout.buffer.flush()
    except OSError as error:
        lose(stdout, error)


def flush() -> None:
    """Write out what the streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        Lasting(stream).flush()


def trouble() -> str | None:
    """Why something that was printed is lost, told once; None where all arrived."""
    why = _unwritten[0] if _unwritten else None
    _unwritten.clear()
    return why


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


codecs.register_error(_ERRORS, _spell)
