"""Options, their panels, and what of them stands on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from specdiag.errors import UsageError
from specdiag.records import TAIL_NAMES

SOURCE, SELECTION, NUMBERS, OUTPUT, RESOURCES = PANELS = ("Source", "Selection", "Numbers", "Output", "Resources")
"""Panels of the shared options in `--help`, in this order."""
THRESHOLDS, CONTENT, RUN, EXECUTION = "Thresholds", "Content", "Run", "Execution"
"""Panels of the commands' own options, before those."""


Arguments: TypeAlias = dict[str, Any]
"""Arguments of a function of the library by name, with the values that typer made of options."""


class DType(StrEnum):
    """Arithmetic."""

    auto = "auto"
    float32 = "float32"
    float64 = "float64"


class Method(StrEnum):
    """How eigenvalues are computed."""

    gram = "gram"
    svd = "svd"


Tail = StrEnum("Tail", {name.replace("-", "_"): name for name in TAIL_NAMES})
"""The rules that `alpha` can follow."""


class LrShape(StrEnum):
    """The course of the lr over a run."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Format(StrEnum):
    """Formats of a table or of data."""

    table = "table"
    json = "json"
    csv = "csv"
    md = "md"


def is_given(ctx: typer.Context, name: str) -> bool:
    """True where an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def given(ctx: typer.Context, names: Iterable[str]) -> Arguments:
    """Those of the options that stand on the command line, as plain values."""
    return {name: plain(ctx.params[name]) for name in names if is_given(ctx, name)}


def plain(value: object) -> object:
    """A choice as the library takes it."""
    return value.value if isinstance(value, StrEnum) else value


SPELLED = {
    "all_rows": "--all", "show": "--open", "model_config": "--config", "layout": "--optimizer-layout",
    "assign": "--set", "models": "--from",
}  # fmt: skip
"""Options that are not called as their parameters are."""


def listed(names: Iterable[str]) -> str:
    """Options as they are typed."""
    return ", ".join(SPELLED.get(name, f"--{name.replace('_', '-')}") for name in names)


def named(given: Mapping[str, object]) -> str:
    """Those of the options that are given, as they are typed."""
    return ", ".join(option for option, value in given.items() if value not in (None, False))


def check_rows(*, all_rows: bool, top: int | None = None, format: str = "table", reference: Path | None = None) -> None:
    """Raise UsageError where `--all` and `--top` are both given, or the format has every row anyway, and no answer."""
    if all_rows and top is not None:
        raise UsageError(f"--all prints every row, --top {top} fewer: leave one out")
    if format != "table" and (idle := named({"--all": all_rows, f"--top {top}": top})):
        raise UsageError(f"{idle} is for tables, and {format} has every row: leave it out")
    if format != "table" and reference is not None:
        raise UsageError(f"--reference is for the answer above the tables, and {format} has none: leave it out")


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
SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SOURCE",
        help="Hub ids (org/name, org/name@revision, URL), directories, weight files, or saved reports.",
        show_default=False,
    ),
]
PlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Saved plan to draw.",
        show_default="recommend's default",
        rich_help_panel=CONTENT,
    ),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        help="Compare numbers with these ranges (from 'specdiag reference build').",
        show_default="those that come with specdiag",
        rich_help_panel=CONTENT,
    ),
]


class StateFormat(StrEnum):
    """Formats of what a command says of this machine."""

    table = "table"
    json = "json"


StateFormatOption = Annotated[
    StateFormat, typer.Option("--format", "-f", help="Format of what is printed.", rich_help_panel=OUTPUT)
]
AllOption = Annotated[bool, typer.Option("--all", help="Print every row of long tables.", rich_help_panel=OUTPUT)]
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top", min=1, help="Rows of a long table to print; those that stand out most.", show_default="8; compare 20",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
SpectraOption = Annotated[
    bool, typer.Option("--spectra/--no-spectra", help="Save the eigenvalues too.", rich_help_panel=OUTPUT)
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="Metric of the table.",
        show_default="square_alpha, else alpha or norms",
        rich_help_panel=OUTPUT,
    ),
]
OutFolderOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="Folder for reports and log, or a .json file for the trajectory alone.",
        show_default="specdiag_trajectory in the run", rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
FormatOption = Annotated[
    Format, typer.Option("--format", "-f", help="Format of what is printed.", rich_help_panel=OUTPUT)
]
