"""How a checkpoint is opened: which files are read, and how their tensors are sorted."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeGuard, cast

from specdiag.errors import UsageError
from specdiag.text import checks


class SortingArguments(TypedDict, total=False):
    """How the tensors of a checkpoint are sorted, as arguments of `analyze`."""

    role_map: str | os.PathLike[str] | None
    experts: int | None
    seed: int | None


class PlainArguments(SortingArguments, total=False):
    """How a checkpoint that is no adapter is opened, as arguments of `analyze`."""

    revision: str | None
    file: str | None
    part: str | None
    stream: bool


class OpeningArguments(PlainArguments, total=False):
    """How a checkpoint is opened, as arguments of `analyze`."""

    base: str | os.PathLike[str] | None


def names_of(arguments: type) -> tuple[str, ...]:
    """List the optional names of a TypedDict of arguments, sorted."""
    return tuple(sorted(arguments.__optional_keys__))


OPENING: tuple[str, ...] = names_of(OpeningArguments)
"""Names of the options that open a checkpoint."""
PLACE = ("revision", "file", "part", "base", "stream")
"""Names of the options that choose the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a checkpoint is opened. Arguments as of `analyze`.

    Raises:
        UsageError: a value makes no sense.
    """

    revision: str | None = None
    file: str | None = None
    part: str | None = None
    base: str | None = None
    stream: bool = False
    role_map: str | None = None
    experts: int | None = None
    seed: int = 0

    @property
    def role_path(self) -> Path | None:
        """The role map's file."""
        return None if self.role_map is None else Path(self.role_map)

    @classmethod
    def of(cls, arguments: Mapping[str, object]) -> Opening:
        """Take the options that open a checkpoint from a call's arguments, and check them.

        Args:
            arguments: names and values, as of `analyze`. Other names are ignored. None stands for the
                default, but not of `stream`.

        Returns:
            The options, with their defaults where nothing is given.

        Raises:
            UsageError: a value makes no sense.
        """
        values = {name: arguments[name] for name in OPENING if arguments.get(name) is not None}
        return cls(
            revision=_optional(checks.text, "revision", values),
            file=_optional(checks.text, "file", values),
            part=_optional(checks.text, "part", values),
            base=_optional(_path_text, "base", values),
            stream=checks.flag("stream", arguments.get("stream", False)),
            role_map=_optional(_path_text, "role_map", values),
            experts=None if "experts" not in values else checks.whole("experts", values["experts"], least=1),
            seed=checks.whole("seed", values.get("seed", 0), least=0),
        )

    def require_same(self, arguments: Mapping[str, object]) -> None:
        """Check that arguments do not contradict the way in which a checkpoint was opened.

        Args:
            arguments: names and values, as of `analyze`. Only those that sort tensors are compared.

        Raises:
            UsageError: one differs, or its value makes no sense.
        """
        other = Opening.of(arguments)
        for name in names_of(SortingArguments):
            current, requested = getattr(self, name), getattr(other, name)
            if arguments.get(name) is not None and requested != current:
                raise UsageError(
                    f"{name}={checks.shown(arguments[name])} is chosen when a checkpoint is opened, and this one is "
                    f"open already, with {name}={current!r}: give its path or hub id instead"
                )


def is_location(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Tell whether a source is a path or a hub id, and not something in memory.

    Args:
        source: as given by the user.

    Raises:
        UsageError: it is a text or path that no file can have.
    """
    if not isinstance(source, (str, os.PathLike)):
        return False
    text = cast("object", os.fspath(cast("str | os.PathLike[str]", source)))
    if not isinstance(text, str) or not (checks.is_name(text) or "://" in text.replace("\0", "")):
        raise UsageError(f"{checks.shown(text)} is no path and no hub id: give one of them")
    return True


def location(source: object) -> str:
    """Give the text of a path or hub id.

    Args:
        source: as given by the user.

    Raises:
        UsageError: it is neither.
    """
    if not is_location(source):
        raise UsageError(f"{checks.shown(source)} is no path and no hub id: give one of them")
    return os.fspath(source)


def is_on_hub(source: object) -> bool:
    """Tell whether a source is a repository of the hub.

    Args:
        source: as given by the user.

    Raises:
        UsageError: it is a text or path that no file can have.
        SourceError: it is neither a path that exists nor what the hub would call a model.
    """
    if not is_location(source):
        return False
    from specdiag.checkpoint.source import locate

    return locate(source).repo is not None


def _optional(check: Callable[[str, object], str], name: str, values: Mapping[str, object]) -> str | None:
    return check(name, values[name]) if name in values else None


def _path_text(name: str, value: object) -> str:
    checks.path(name, value)
    return os.fspath(cast("str | os.PathLike[str]", value))
