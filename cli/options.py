"""Options that several commands share: one definition, one help text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """`8G`, `500M`, `1.5GiB`, or plain bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(f"'{text}' is no size; write 8G or 500M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


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
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
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
FormatOption = Annotated[
    str, typer.Option("--format", "-f", help="What is printed: table, json, csv, md or parquet (with -o).")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Where the report goes; with -f csv, md or parquet, where that goes."),
]
