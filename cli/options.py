"""Options that several commands share: one definition, one help text."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag.errors import UsageError


class DType(StrEnum):
    """Arithmetic."""

    auto = "auto"
    float32 = "float32"
    float64 = "float64"


class Method(StrEnum):
    """How eigenvalues are computed."""

    gram = "gram"
    svd = "svd"


class Tail(StrEnum):
    """Which rule `alpha` follows."""

    hill = "hill"
    hill_paper = "hill-paper"
    ks = "ks"
    fix_finger = "fix-finger"
    farms = "farms"


class LrShape(StrEnum):
    """The course of the lr over a run."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Format(StrEnum):
    """What is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def given(ctx: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """Those of the options that stand on the command line, as plain values."""
    return {name: plain(ctx.params[name]) for name in names if is_given(ctx, name)}


def plain(value: Any) -> Any:
    """A choice as the library takes it."""
    return value.value if isinstance(value, StrEnum) else value


def listed(names: Iterable[str]) -> str:
    """Options as they are typed."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def require_checkpoint(source: str, names: Iterable[str], how: str = "taken") -> None:
    """Raise UsageError where a saved report comes with options that compute or choose anew: none is ignored."""
    if refused := listed(names):
        raise UsageError(f"{source} is a saved report, {how} as it is: {refused} needs the checkpoint itself")


def parse_size(text: str) -> int:
    """`specdiag.resources.parse_size`, refused as typer refuses."""
    from specdiag import resources

    try:
        return resources.parse_size(text)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error


def cache_folder(*, wanted: bool = True) -> Path | None:
    """Where results are kept; None where that is switched off."""
    from specdiag.analysis.cache_store import default_folder

    return default_folder() if wanted else None


SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Hub id (org/name, org/name@revision, URL), directory, weight file, or saved report.",
        show_default=False,
    ),
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub repository.")]
FileOption = Annotated[str | None, typer.Option("--file", help="Weight file within the repository or directory.")]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="With an adapter: the model that it changes, for W + delta."),
]
StreamOption = Annotated[
    bool, typer.Option("--stream", help="Read a hub repository by ranges; nothing is written to disk.")
]
RoleMapOption = Annotated[
    Path | None, typer.Option("--role-map", help="TOML file with roles for names that the rules do not know.")
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Only matrices with such a name; repeatable."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="Not matrices with such a name; repeatable."),
]
RoleOption = Annotated[
    list[str] | None,
    typer.Option("--role", metavar="ROLE", help="Only this role (q, k, v, o, gate, up, down, ...); repeatable."),
]
ExpertsOption = Annotated[
    int | None, typer.Option("--experts", min=1, help="Sample this many experts of each stack (seeded).")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
DTypeOption = Annotated[DType, typer.Option("--dtype", help="auto: float64, and float32 where that is slow.")]
TailOption = Annotated[Tail, typer.Option("--tail", help="Rule of alpha; the KS-optimal pl_alpha is always beside.")]
TailFractionOption = Annotated[float, typer.Option("--tail-fraction", help="Share of eigenvalues in the tail.")]
SquareOption = Annotated[bool, typer.Option("--square/--no-square", help="alpha_square, the shape-free twin.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Worker threads.", show_default="available processors")
]
MemoryOption = Annotated[
    int | None,
    typer.Option(
        "--memory", parser=parse_size, metavar="SIZE", help="What the workers may use together, such as 8G.",
        show_default="half of the machine's",
    ),
]  # fmt: skip
CacheOption = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Take results of equal tensors from earlier analyses, and keep new ones."),
]
FormatOption = Annotated[
    str, typer.Option("--format", "-f", help="What is printed: table, json, csv, md or parquet (with -o).")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Where the report goes; with -f csv, md or parquet, where that goes."),
]
