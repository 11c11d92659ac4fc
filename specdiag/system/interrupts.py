"""Signals that would end a process. Finished work is saved first, and the exit code names the signal.

A terminal that closes sends SIGHUP, a batch system SIGTERM, SIGUSR1 or SIGXCPU, a keyboard SIGINT or SIGQUIT. The first
one of any kind is a KeyboardInterrupt, as Ctrl-C is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_NEVER = (
    "SIGKILL", "SIGSTOP", "SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGINFO",
    "SIGABRT", "SIGBUS", "SIGEMT", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP",
)  # fmt: skip
"""Signals that cannot be caught, end nothing, or report a crash."""
_IMPATIENT = 3
"""Number of Ctrl-C after which the process ends at once."""

_received: list[int] = []
_n_delays = 0


def stopping_signals() -> list[int]:
    """List the signals that would end this process and can be caught. Ignored (nohup) and handled ones are left out."""
    never = {getattr(signal, name, None) for name in _NEVER}
    ours = (signal.SIG_DFL, signal.default_int_handler, _stop)
    return [n for n in signal.valid_signals() if n not in never and signal.getsignal(n) in ours]


def catch() -> None:
    """Let each of these signals raise KeyboardInterrupt, but only the first one that comes.

    Those that follow do not interrupt the saving.
    """
    for number in stopping_signals():
        signal.signal(number, _stop)


def remember(number: int) -> None:
    """Remember a signal that another handler took.

    Args:
        number: of the signal.
    """
    _received.append(number)


def exit_code() -> int:
    """Compute 128 plus the number of the first signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def forget() -> None:
    """Forget received signals, for a further command in the same process."""
    _received.clear()


def any_received() -> bool:
    """Tell whether a signal was received."""
    return bool(_received)


@contextmanager
def delay_signals() -> Generator[None]:
    """Delay signals until the end of the block, in which a finished result is saved.

    Yields:
        Nothing; the result is saved inside.

    Raises:
        KeyboardInterrupt: at the end of the block, where the first signal came within it.
    """
    global _n_delays
    before = len(_received)
    _n_delays += 1
    try:
        yield
    finally:
        _n_delays -= 1
    if before == 0 and _received and not _n_delays:
        raise KeyboardInterrupt


def _stop(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    if _received.count(signal.SIGINT) == _IMPATIENT:
        os._exit(exit_code())
    if len(_received) == 1 and not _n_delays:
        raise KeyboardInterrupt
