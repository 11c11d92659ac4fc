"""Commands as typer makes them, with help that fits 80 columns, and the program's switches after their name.

A usage error may quote the name of a file, which is printed as it shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from specdiag.text.printable import printable

from . import output, workflow

_PREFIX = "Value error, "
"""Opening of the sentences that pydantic makes for typer."""
_SWITCHES = ("quiet", "verbose", "debug")
_WIDEST = 24
"""Characters of choices that stand beside an option; longer lists end its help."""
_VALUES: dict[object, str] = {
    int: "N", list[int]: "N", float: "NUMBER", list[float]: "NUMBER", tuple[float, float]: "NUMBER NUMBER",
}  # fmt: skip
"""Names of values that have none of their own, by type; others are TEXT."""


class _Group(TyperGroup):
    """A program, or a command that has commands."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the command line."""
        with _quoted():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with _quoted():
            return super().invoke(ctx)

    def get_params(self, ctx: Any) -> list[Any]:
        """List the options."""
        return _simplified(super().get_params(ctx))


class _Command(TyperCommand):
    """A command that takes the program's own options after its name too, as `specdiag analyze X -q`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List options and arguments, the program's switches last."""
        return _simplified([*super().get_params(ctx), *_everywhere(ctx.find_root().command)])


def make_program(name: str, help: str) -> typer.Typer:
    """Make a program, or a command that has commands.

    Args:
        name: as it is typed.
        help: a sentence.
    """
    return typer.Typer(
        name=name,
        cls=_Group,
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def add(program: typer.Typer, command: Callable[..., None], example: str, panel: str | None = None) -> None:
    """Add a command.

    Args:
        program: that gets it.
        command: its function; the docstring is its help.
        example: a line that could be typed.
        panel: of the commands that help lists.
    """
    paragraphs = (" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))
    program.command(cls=_Command, help="\n\n".join(paragraphs), epilog=f"Example: {example}", rich_help_panel=panel)(
        command
    )


@contextmanager
def _quoted() -> Generator[None]:
    try:
        yield
    except typer.TyperException as error:
        for name in ("message", "option_name", "cmd_name"):
            if isinstance(held := getattr(error, name, None), str):
                setattr(error, name, workflow.inert(printable(held.removeprefix(_PREFIX), keep="\n")))
        _name_format(error)
        raise


def _name_format(error: Any) -> None:
    """Name `--format json` where `--json` was typed."""
    word = str(getattr(error, "option_name", "")).removeprefix("--")
    parameters = getattr(getattr(getattr(error, "ctx", None), "command", None), "params", ())
    choices = [choice for p in parameters if p.name == "format" for choice in p.type_descriptor.choices or ()]
    if any(word == str(getattr(choice, "value", choice)) for choice in choices):
        error.possibilities = [f"--format {word}"]


def _everywhere(program: Any) -> Generator[Any]:
    """The switches of the program, as options of a command that help does not list again."""
    for option in program.params if isinstance(program, _Group) else ():
        if option.name in _SWITCHES:
            here: Any = copy.copy(option)
            here.expose_value, here.hidden, here.envvar = False, True, None
            here.callback = partial(_switch_on, option.name)
            yield here


def _switch_on(name: str, ctx: Any, _option: Any, value: bool) -> None:
    if value:
        ctx.obj = {**(ctx.obj or {}), name: True}
        output.configure(**ctx.obj)


def _simplified(parameters: list[Any]) -> list[Any]:
    """The same parameters; help shows what is typed after an option, and nothing after a switch."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption | TyperArgument) and "display_type_rich" not in vars(parameter):
            value = _value(parameter)
            cast("Any", parameter).display_type_rich = lambda ctx, value=value: value  # pyright: ignore[reportUnknownLambdaType]
    return parameters


def _value(parameter: TyperOption | TyperArgument) -> str:
    """The value as help shows it; a long list of choices goes to the end of the parameter's help."""
    kind, is_option = parameter.type_descriptor, isinstance(parameter, TyperOption)
    if getattr(parameter, "is_flag", False):
        return ""
    if kind.is_choice:
        choices = [str(getattr(choice, "value", choice)) for choice in kind.choices or ()]
        if len(shown := "|".join(choices)) <= _WIDEST:
            return shown
        parameter.help = f"{parameter.help} One of {', '.join(choices)}."
        return "CHOICE" if is_option else ""
    if not is_option:
        return ""
    return parameter.metavar or ("FILE" if kind.is_path else _VALUES.get(kind.annotation, "TEXT"))
