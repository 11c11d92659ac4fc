"""Where everything that is printed goes: data to stdout, talk to stderr, errors in one sentence with an exit code."""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from specdiag.errors import ComputationError, SourceError, SpecdiagError, UsageError

EXIT_CODES: dict[type[SpecdiagError], int] = {UsageError: 2, SourceError: 3, ComputationError: 4}
INTERRUPTED = 130
_PIPED_WIDTH = 200
_FIRST_SPEAKS = 2.0


@dataclass
class _State:
    quiet: bool = False
    debug: bool = False
    rank: int = 0


_state = _State()


def configure(*, quiet: bool, verbose: bool, debug: bool) -> None:
    """Apply the global options."""
    _state.quiet, _state.debug = quiet, debug
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is imported
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("specdiag")
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)


def fall_silent(rank: int) -> None:
    """Be one of several processes that do the same, and not the one that speaks: what remains are own troubles."""
    _state.quiet, _state.rank = True, rank
    logger = logging.getLogger("specdiag")
    if logger.level == logging.WARNING:
        logger.setLevel(logging.ERROR)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def trouble(message: str) -> None:
    """Say what happened to one of several processes."""
    console(stderr=True, own=True).print(Text(f"process {_state.rank}: {message}", style="yellow"), soft_wrap=True)


def debugs() -> bool:
    """Whether tracebacks were asked for."""
    return _state.debug


class _Console(Console):
    """rich ends the process with 1 where the reader of a pipe went away; here that is no failure."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False, own: bool = False) -> Console:
    """A console on stdout or stderr: as wide as the terminal, and wide where there is none.

    A process that fell silent has one that prints nothing, but for what is its `own`.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _PIPED_WIDTH
    silent = _state.rank > 0 and not own
    return _Console(stderr=stderr, width=width, highlight=False, markup=False, soft_wrap=False, quiet=silent)


def talk(message: str, style: str | None = None) -> None:
    """Say something to the person, on stderr, unless asked to be quiet."""
    if not _state.quiet:
        console(stderr=True).print(Text(message, style=style or ""), soft_wrap=True)


def write(data: bytes) -> None:
    """Machine-readable data to stdout, byte for byte."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data if data.endswith(b"\n") else data + b"\n")
    sys.stdout.buffer.flush()


def deliver(data: bytes, out: Path | None, show: Callable[[], None] | None = None) -> None:
    """Save the data where that is asked for, and print: the table by `show`, else the data if they are not saved."""
    from specdiag.report import write_atomically

    if out is not None:
        write_atomically(out, data)
    with closed_pipe_is_silent():
        if show is not None:
            show()
        elif out is None:
            write(data)
    if out is not None:
        talk(f"written: {out}", "green")


def shows_progress() -> bool:
    """Progress bars only where a person watches."""
    return sys.stderr.isatty() and not _state.quiet and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn exceptions into one sentence on stderr and the exit code that fits."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with _exit_codes():
            return command(*args, **kwargs)

    return wrapper


def leave(code: int) -> NoReturn:
    """End the process now: a worker inside LAPACK cannot be interrupted, and a large matrix takes minutes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def closed_pipe_is_silent() -> Generator[None]:
    """The reader of stdout may go away (`| head`): that ends the printing, and is no failure."""
    try:
        yield
    except BrokenPipeError:
        # Point stdout at nothing, or the interpreter complains while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _exit_codes() -> Generator[None]:
    try:
        with closed_pipe_is_silent():
            yield
    except SpecdiagError as error:
        _fail(str(error), next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind)))
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 4)
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: a sentence and an exit code, never a bare traceback
        _fail(f"unexpected {type(error).__name__}: {error}; run again with 'specdiag --debug' and report it", 4)


def _fail(message: str, code: int) -> None:
    if _state.rank:
        # Where the first process fails alike, torchrun ends this one before it says the same.
        time.sleep(_FIRST_SPEAKS)
        message = f"process {_state.rank}: {message}"
    if _state.debug:
        traceback.print_exc()
    console(stderr=True, own=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    raise typer.Exit(code) from None
