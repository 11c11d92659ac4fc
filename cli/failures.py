"""Exceptions in one sentence, with the exit code that fits."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from specdiag.errors import ComputationError, SourceError, SpecdiagError, UsageError
from specdiag.system import interrupts

from . import door

INCOMPLETE = 4
_EXIT_CODES: dict[type[SpecdiagError], int] = {UsageError: 2, SourceError: 3, ComputationError: INCOMPLETE}
_MEMORY = "give more memory, or ask for less with --jobs 1 or --memory"
_NO_ROOM = ("can't allocate memory", "out of memory", "cannot allocate memory", "bad_alloc", "failed to map segment")
"""How libraries say that there is no memory, where they do not raise MemoryError."""


def sentence(error: BaseException) -> tuple[str, int]:
    """The sentence for an exception, and the exit code."""
    if isinstance(error, ComputationError) and hasattr(error, "report") and error.__cause__ is not None:
        return sentence(error.__cause__)  # an analysis that failed, and has been saved as far as it came
    if isinstance(error, SpecdiagError):
        return door.translated(str(error)), next(code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", interrupts.exit_code()
    if _is_memory(error):
        return f"memory ran out ({_one_line(error) or 'an allocation failed'}): {_MEMORY}", INCOMPLETE
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return (
            "no further thread could be started: ask for fewer with --jobs",
            INCOMPLETE,
        )
    if isinstance(error, RecursionError):
        return "the source nests deeper than can be followed: save its weights alone, as safetensors", INCOMPLETE
    if isinstance(error, FileNotFoundError) and error.filename is None and not _has_folder():
        return "the folder in which this was started does not exist any more: change to another", 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", INCOMPLETE
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        return f"a name or a text is no Unicode ({error.reason}): rename it, or save it anew", 3
    if isinstance(error, ImportError) and interrupts.any_received():  # a library that was being loaded made this of it
        return "interrupted", interrupts.exit_code()
    return f"unexpected {type(error).__name__}: {error}; run again with 'specdiag --debug' and report it", INCOMPLETE


def refuse_odd_texts(given: Mapping[str, object]) -> None:
    """Raise UsageError for an argument that no system call takes, or that no report could name: before the work."""
    for name, value in given.items():
        for text in door.texts(value):
            if "\0" in text:
                raise UsageError(f"{name} '{text}' has a NUL character, which no path and no name has")
            require_unicode(text)


def require_unicode(text: str) -> None:
    """Raise UsageError for the name of a file whose bytes are no UTF-8."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise UsageError(f"'{text}' is no Unicode, and what is saved could not name it: rename it")


def _has_folder() -> bool:
    """Tell whether the folder in which the process runs still exists."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True


def _is_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError | ImportError | OSError) and any(words in said for words in _NO_ROOM))
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
