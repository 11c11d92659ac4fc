"""The door between library and command line: `experts=0` of a message becomes `--experts 0`.

Library errors speak of arguments, as `name=value` or `name=`. Only the names that the running command has as options
are translated, read from its own parameters. Quoted text, calls such as `f(x=1)`, and what the person typed stay.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import PurePath

import typer
from typer.core import TyperOption

_QUOTED = r"""(?<!\w)'.*?'(?!\w)|(?<!\w)".*?"(?!\w)|`[^`]*`|\w\([^()]*\)"""
_VALUE = r"""'.*?'(?!\w)|".*?"(?!\w)|\([^()]*\)|\[[^\[\]]*\]|(?![,;:.!?)]*(?:\s|$))\S+?(?=[,;:.!?)]*(?:\s|$))"""
_RENAMED = {"partial_reports": "resume", "learning_rate": "lr", "peak_lr": "lr", "every": "all"}
"""Arguments whose options have another name."""
_TRANSLATED = r"--set [\w.]+=\S*"
"""An option that was an argument: some sentences come twice through the door."""
_NO_NAME_BEFORE = r"(?<![\w.\-/=&?])"


@dataclass
class _Command:
    """The command that runs: its parameters, and what the person typed."""

    parameters: Sequence[object] = ()
    typed: tuple[str, ...] = ()


_running = _Command()


def translated(text: str) -> str:
    """A sentence of the library in the words of the command that runs."""
    return in_options(text, _running.parameters, _running.typed)


@contextmanager
def translating(ctx: typer.Context | None, typed: Iterable[str]) -> Generator[None]:
    """Translate for this command; what was `typed` is never touched."""
    before = _running.parameters, _running.typed
    _running.parameters = () if ctx is None else ctx.command.params
    _running.typed = tuple(sorted({text for text in typed if "=" in text}, key=len, reverse=True))
    try:
        yield
    finally:
        _running.parameters, _running.typed = before


def in_options(text: str, parameters: Sequence[object], kept: Iterable[str] = ()) -> str:
    """Arguments in a sentence, as options.

    Args:
        text: of the library, such as `leave out stream=True`.
        parameters: those of the command. Arguments without dashes are no options.
        kept: texts that stay as they are.
    """
    options = _by_argument(parameters)
    if "=" not in text or not options:
        return text
    names = "|".join(sorted(map(re.escape, options), key=len, reverse=True))
    stays = "|".join([*map(re.escape, kept), _QUOTED, _TRANSLATED])
    pattern = rf"(?P<stays>{stays})|{_NO_NAME_BEFORE}(?P<name>{names})=(?!=)(?P<value>{_VALUE})?"
    return re.sub(pattern, lambda match: _translated(match, options), text)


def texts(value: object) -> Iterator[str]:
    """Every text and path in the value of an option."""
    if isinstance(value, str | PurePath):
        yield str(value)
    elif isinstance(value, list | tuple):
        for inner in value:  # pyright: ignore[reportUnknownVariableType]
            yield from texts(inner)


def _by_argument(parameters: Sequence[object]) -> dict[str, TyperOption]:
    """Options by the names that the library has for them: the parameter's, the option's, the plural of a repeatable."""
    named = [p for p in parameters if isinstance(p, TyperOption) and p.name]
    options = {_longest(p.opts).removeprefix("--").replace("-", "_"): p for p in named} | {
        p.name: p for p in named if p.name
    }
    options |= {argument: options[name] for argument, name in _RENAMED.items() if name in options}
    plural = {f"{name}s": p for name, p in options.items() if p.multiple}
    settings = {name: options["set"] for name in _trainer_arguments() if "set" in options}
    return settings | plural | options


def _trainer_arguments() -> list[str]:
    """Names that `--set` takes; none before the Trainer has been loaded, when nothing can speak of them."""
    module = sys.modules.get("transformers.training_args")
    return [] if module is None else [field.name for field in fields(module.TrainingArguments)]


def _translated(match: re.Match[str], options: Mapping[str, TyperOption]) -> str:
    if match["stays"] is not None:
        return match["stays"]
    option, value = options[match["name"]], match["value"]
    flag = _longest(option.opts)
    if flag == "--set":
        return f"--set {match['name']}={' '.join(_words(value or ''))}"
    if value is None:
        return flag
    if option.is_flag:
        return _switch(option, flag, value)
    if value == "None":
        return f"no {flag}"
    words = _words(value)
    return " ".join(f"{flag} {word}" for word in words) if option.multiple else " ".join([flag, *words])


def _switch(option: TyperOption, flag: str, value: str) -> str:
    if value not in ("True", "False"):
        return " ".join([flag, *_words(value)])
    if value == "True":
        return flag
    return _longest(option.secondary_opts) if option.secondary_opts else f"no {flag}"


def _longest(names: Sequence[str]) -> str:
    """The first long name of an option."""
    return next((name for name in names if name.startswith("--")), names[0])


def _words(value: str) -> list[str]:
    """The value as it is typed: quotes where the shell needs them, the parts of a pair side by side."""
    try:
        held = ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [value]
    if isinstance(held, tuple | list):
        return [shlex.quote(part) if isinstance(part, str) else str(part) for part in held]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return [shlex.quote(held) if isinstance(held, str) else value]
