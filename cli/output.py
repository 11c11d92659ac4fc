"""Where everything that is printed goes: data to stdout, talk to stderr, errors in one sentence with an exit code.

Names and messages come from files of strangers. Whatever goes through here is printed as characters that show, in what
the terminal can show; and what cannot be written costs nothing that was computed.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TextIO, cast

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from specdiag.system import address_space, interrupts
from specdiag.text.printable import in_json, printable

from . import door, failures, streams, workflow
from .wrapping import wrapped

P = ParamSpec("P")

_PIPED_WIDTH = 200
_FIRST_SPEAKS = 2.0


@dataclass
class _State:
    quiet: bool = False
    debug: bool = False
    rank: int = 0


_state = _State()


class _Formatter(logging.Formatter):
    """Messages name tensors and files: they are printed as they show."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return workflow.inert(printable(door.translated(super().formatMessage(record))))

    def formatException(self, ei: Any) -> str:
        return workflow.inert(printable(super().formatException(ei), keep="\n"))


class _Handler(logging.StreamHandler[Any]):
    """The one handler of this program, however often it is configured."""


def configure(*, quiet: bool, verbose: bool, debug: bool) -> None:
    """Apply the global options."""
    _state.quiet, _state.debug = quiet, debug
    streams.settle()
    interrupts.forget()
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is imported
    handler = _Handler(streams.Lasting(sys.stderr))
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("specdiag")
    logger.handlers = [*(h for h in logger.handlers if not isinstance(h, _Handler)), handler]
    logger.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
    warnings.formatwarning = _warning


def fall_silent(rank: int) -> None:
    """Be one of several processes that do the same, and not the one that speaks: what remains are own troubles."""
    _state.quiet, _state.rank = True, rank
    logger = logging.getLogger("specdiag")
    if logger.level == logging.WARNING:
        logger.setLevel(logging.ERROR)
    streams.silence(sys.stdout)


def trouble(message: str) -> None:
    """Say what happened to one of several processes."""
    console(stderr=True, own=True).print(f"process {_state.rank}: {message}", style="yellow", soft_wrap=True)


def fault(message: str, prefix: str = "error: ", *, own: bool = False) -> None:
    """A line on stderr that says what went wrong; of several processes the first says it, unless it is their `own`."""
    text = Text.assemble((prefix, "bold red"), streams.legible(door.translated(message)))
    console(stderr=True, own=own).print(text, soft_wrap=True)


def debugs() -> bool:
    """True where tracebacks were asked for."""
    return _state.debug


class _Console(Console):
    """A console that prints text of strangers as characters that show."""

    has_width = True
    """False where nobody sees how wide lines are: a sentence then stays on one."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich's; what may wrap is a sentence: it speaks of options, and is broken between words, never in one."""
        shown = map(_legible, objects)
        if how.get("soft_wrap"):
            shown = (_legible(door.translated(o)) if isinstance(o, str) else o for o in objects)
            shown = (_broken(o, self.width) for o in shown) if self.has_width else shown
        super().print(*shown, **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's; here even what came past `print` is made to show."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            shown = text if control else workflow.inert(printable(text, keep="\n"))
            yield segment if shown == text else Segment(shown, style)


def _broken(renderable: Any, width: int) -> Any:
    text = Text(renderable) if isinstance(renderable, str) else renderable
    if not isinstance(text, Text):
        return text
    margin = len(text.plain) - len(text.plain.lstrip())
    return wrapped(text, width, margin and margin + 2)


def _legible(renderable: Any) -> Any:
    return streams.legible(renderable) if isinstance(renderable, str) else renderable


def console(*, stderr: bool = False, own: bool = False) -> _Console:
    """A console on stdout or stderr: as wide as the terminal, and wide where there is none.

    A process that fell silent has one that prints nothing, but for what is its `own`.
    """
    stream = sys.stderr if stderr else sys.stdout
    has_width = stream.isatty() or "COLUMNS" in os.environ
    made = _Console(
        file=cast(TextIO, streams.Lasting(stream)),
        width=None if has_width else _PIPED_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        quiet=_state.rank > 0 and not own,
    )
    made.has_width = has_width
    return made


def talk(message: str, style: str | None = None, *, breaks: bool = True) -> None:
    """Say something to the person, on stderr, unless asked to be quiet. What is to be copied has no `breaks`."""
    if not _state.quiet:
        to = console(stderr=True)
        to.has_width = to.has_width and breaks
        to.print(message, style=style or "", soft_wrap=True)


def write(data: bytes) -> None:
    """Machine-readable data to stdout. JSON of strangers' names is escaped further, to the same content."""
    streams.write(in_json(data if data.endswith(b"\n") else data + b"\n"))


def deliver(data: bytes, out: Path | None, show: Callable[[], None] | None = None) -> None:
    """Save the data where that is asked for, and print: the table by `show`, else the data if they are not saved."""
    from specdiag.files import write_atomically

    if out is not None:
        with interrupts.delay_signals():
            write_atomically(out, data)
    if show is not None:
        show()
    elif out is None:
        write(data)
    if out is not None:
        talk(f"written: {out}", "green")


def survived(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error that the command goes on after; its traceback where that was asked."""
    _trace()
    return failures.sentence(error)


def command(line: str) -> None:
    """Write a workflow command to stderr, where the runner reads it as it does stdout."""
    if not _state.rank:
        streams.Lasting(sys.stderr).write(f"{line}\n")


def shows_progress() -> bool:
    """Progress bars only where a person watches."""
    return sys.stderr.isatty() and not _state.quiet and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn exceptions into one sentence on stderr and the exit code that fits."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        typed = (text for value in kwargs.values() for text in door.texts(value))
        with door.translating(cast("typer.Context | None", kwargs.get("ctx")), typed), _exit_codes():
            failures.refuse_odd_texts(kwargs)
            address_space.require_libraries()
            command(*args, **kwargs)

    return wrapper


def leave(code: object = None) -> NoReturn:
    """End the process, after a signal unless there is a code: a worker inside LAPACK may take minutes, or hang."""
    streams.flush()
    os._exit(code if isinstance(code, int) else interrupts.exit_code())


@contextmanager
def _exit_codes() -> Generator[None]:
    try:
        yield
        streams.flush()
    except typer.Exit as done:
        streams.flush()
        lost = _say_what_is_lost()
        raise typer.Exit(done.exit_code or failures.INCOMPLETE * lost) from None
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort: a sentence, never a bare traceback
        _fail(*failures.sentence(error))
    if _say_what_is_lost():
        raise typer.Exit(failures.INCOMPLETE)


def _say_what_is_lost() -> bool:
    why = streams.trouble()
    if why is not None:
        fault(f"stdout: {why}: what was to be printed is lost")
    return why is not None


def _fail(message: str, code: int) -> NoReturn:
    if _state.rank:
        # Where the first process fails alike, torchrun ends this one before it says the same.
        time.sleep(_FIRST_SPEAKS)
        message = f"process {_state.rank}: {message}"
    _trace()
    fault(message, own=True)
    raise typer.Exit(code) from None


def _trace() -> None:
    if _state.debug:
        streams.Lasting(sys.stderr).write(workflow.inert(printable(traceback.format_exc(), keep="\n")))


def _warning(message: Warning | str, category: type[Warning], *_where: Any, **_more: Any) -> str:
    return workflow.inert(f"{category.__name__}: {printable(door.translated(str(message)))}\n")
