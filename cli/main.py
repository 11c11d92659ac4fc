"""The `specdiag` program."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from specdiag.system import interrupts
from specdiag.text.printable import printable

from . import output, streams
from .analyze import analyze
from .audit import audit
from .compare import compare
from .plot import plot
from .recommend import recommend
from .report import report
from .simulate import simulate
from .train import train
from .trajectory import trajectory
from .watch import watch


class _Group(TyperGroup):
    """A usage error may quote the name of a file, as of a glob: it is printed as it shows."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _quoted():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _quoted():
            return super().invoke(ctx)


@contextmanager
def _quoted() -> Generator[None]:
    try:
        yield
    except typer.TyperException as error:
        for name in ("message", "option_name", "cmd_name"):
            if isinstance(held := getattr(error, name, None), str):
                setattr(error, name, printable(held, keep="\n"))
        raise


app = typer.Typer(
    name="specdiag",
    cls=_Group,
    help="Spectral diagnostics of transformer checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(analyze)
app.command()(recommend)
app.command()(plot)
app.command()(report)
app.command()(audit)
app.command()(compare)
app.command()(trajectory)
app.command()(simulate)
app.command()(watch)
app.command()(train)


def _print_version(value: bool) -> None:
    if value:
        print(f"specdiag {version('specdiag')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def main(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only data and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SPECDIAG_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Spectral diagnostics of transformer checkpoints."""
    output.configure(quiet=quiet, verbose=verbose, debug=debug)


def run() -> None:
    """Entry point of the console script."""
    streams.prepare()
    interrupts.catch()
    try:
        app()
    except SystemExit as done:
        if done.code and any(t.is_alive() and not t.daemon for t in threading.enumerate()[1:]):
            output.leave(done.code)  # a worker inside LAPACK is not waited for
        raise
