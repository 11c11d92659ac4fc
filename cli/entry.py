"""The entry point: streams and signals are prepared before the commands are imported, which takes half a second."""

from __future__ import annotations

import threading

from specdiag.system import interrupts

from . import streams

_INTERRUPTED = 130
"""The code that typer ends with after any signal."""

_INCOMPLETE = 4
"""The code of `failures`, which is not loaded for help."""


def run() -> None:
    """Run the program that the command line names."""
    streams.prepare()
    interrupts.catch()
    try:
        from .main import app

        app()
    except KeyboardInterrupt:  # before the command began, or after it ended
        raise SystemExit(interrupts.exit_code()) from None
    except OSError as error:  # help or a version that stdout cannot take: commands speak for themselves
        from . import output

        output.fault(f"stdout: {error.strerror or error}: what was to be printed is lost")
        output.leave(_INCOMPLETE)
    except SystemExit as done:
        if done.code == _INTERRUPTED:
            done.code = interrupts.exit_code()
        if done.code and any(t.is_alive() and not t.daemon for t in threading.enumerate()[1:]):
            from . import output

            output.leave(done.code)  # a worker inside LAPACK is not waited for
        raise
