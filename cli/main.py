"""The `specdiag` program."""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from specdiag.system import interrupts
from specdiag.text.printable import printable

from . import output, streams, workflow
from .analyze import analyze
from .audit import audit
from .compare import compare
from .explain import explain
from .plot import plot
from .recommend import recommend
from .report import report
from .simulate import simulate
from .train import train
from .trajectory import trajectory
from .verify import verify
from .watch import watch

_PREFIX = "Value error, "
"""Opening of the sentences that pydantic makes for typer."""


class _Group(TyperGroup):
    """The program: a usage error may quote the name of a file, which is printed as it shows."""

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
                setattr(error, name, workflow.inert(printable(held.removeprefix(_PREFIX), keep="\n")))
        raise


class _Command(TyperCommand):
    """A command that takes the program's own options after its name too, as `specdiag analyze X -q`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [*super().get_params(ctx), *_everywhere(ctx.find_root().command)]


def _everywhere(program: Any) -> Generator[Any]:
    """The switches of the program, as options of a command that help does not list again."""
    for option in program.params if isinstance(program, _Group) else ():
        if option.name in ("quiet", "verbose", "debug"):
            here: Any = copy.copy(option)
            here.expose_value, here.hidden, here.envvar = False, True, None
            here.callback = partial(_switch_on, option.name)
            yield here


def _switch_on(name: str, ctx: Any, _option: Any, value: bool) -> None:
    if value:
        ctx.obj = {**(ctx.obj or {}), name: True}
        output.configure(**ctx.obj)


app = typer.Typer(
    name="specdiag",
    cls=_Group,
    help="Spectral diagnostics of transformer checkpoints.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for _command in (analyze, recommend, plot, report, audit, verify, compare, trajectory, simulate, watch, train, explain):
    app.command(cls=_Command)(_command)


def _print_version(value: bool) -> None:
    if value:
        print(f"specdiag {version('specdiag')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print data and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more on stderr.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SPECDIAG_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Spectral diagnostics of transformer checkpoints."""
    ctx.obj = {"quiet": quiet, "verbose": verbose, "debug": debug}
    output.configure(**ctx.obj)


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
