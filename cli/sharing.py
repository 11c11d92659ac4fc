"""Shared options of a command: its signature, and what was given of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from specdiag.errors import UsageError

from . import options, shared_options


@dataclass(frozen=True)
class Given:
    """The shared options that stand on the command line.

    Attributes:
        values: by parameter, without the cache.
        names: the parameters, the cache too.
        wants_cache: False where results are neither looked up nor kept.
    """

    values: Mapping[str, Any]
    names: tuple[str, ...]
    wants_cache: bool = True

    @property
    def cache(self) -> Path | None:
        """The folder of results; None where that is switched off."""
        return options.cache_folder(wanted=self.wants_cache)

    def arguments(self, *, without: Container[str] = ()) -> options.Arguments:
        """Arguments of `specdiag.analyze`, but for its cache."""
        return {_ARGUMENTS.get(name, name): value for name, value in self.values.items() if name not in without}

    def analysis(self, *, without: Container[str] = ()) -> options.Arguments:
        """Arguments of `specdiag.analyze`, with its cache."""
        return self.arguments(without=without) | {"cache": self.cache}

    def require_checkpoint(
        self, source: str, how: str = "taken", *, others: Iterable[str] = (), without: Container[str] = ()
    ) -> None:
        """Raise UsageError where a saved report comes with options that compute or choose anew: none is ignored.

        Args:
            source: the report, as it was typed.
            how: how it is used.
            others: options of the command itself that need the checkpoint too.
            without: shared options that go with a report.
        """
        if refused := options.listed([*(name for name in self.names if name not in without), *others]):
            raise UsageError(f"{source} is a saved report, {how} as it is: {refused} needs the checkpoint itself")


_ARGUMENTS = {"role": "roles"}
"""Arguments of the library that options have another name for: one is given once for each value."""


def takes_shared(name: str, **defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the shared options of `shared_options.TAKES[name]`, as one argument `given`.

    Args:
        name: of the command.
        defaults: where they differ from those of the others; they are handed on as if they had been given.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        taken = {option: shared_options.SHARED[option] for option in shared_options.TAKES[name]}
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
        shared = [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=defaults.get(option, default)
            )
            for option, (kind, default) in taken.items()
        ]

        @functools.wraps(command)
        def wrapper(*, ctx: typer.Context, **values: object) -> None:
            chosen = {option: options.plain(values.pop(option)) for option in taken}
            command(**values, ctx=ctx, given=_given(ctx, chosen, defaults))

        parameters = sorted((*(p.replace(kind=p.KEYWORD_ONLY) for p in own), *shared), key=_place)
        wrapper.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _given(ctx: typer.Context, chosen: Mapping[str, object], defaults: Mapping[str, object]) -> Given:
    names = tuple(name for name in chosen if options.is_given(ctx, name))
    if "seed" in names and not chosen.get("experts") and not chosen.get("randomize"):
        draws = " or --randomize" if "randomize" in chosen else ""
        raise typer.BadParameter(f"nothing is drawn without --experts{draws}", param_hint="'--seed'")
    wanted = {name for name in chosen if name in names or name in defaults} - {"cache"}
    return Given({name: chosen[name] for name in chosen if name in wanted}, names, chosen.get("cache", True) is True)


def _place(parameter: inspect.Parameter) -> int:
    """Options stand in the order of their panels, those of none and of a command's own before."""
    info = getattr(parameter.annotation, "__metadata__", (None,))[0]
    panel = getattr(info, "rich_help_panel", None)
    return options.PANELS.index(panel) + 1 if panel in options.PANELS else 0
