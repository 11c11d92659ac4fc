"""Figures on pages: each text between two lines that name it, and tables in Markdown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def add_options(parser: argparse.ArgumentParser, page: Path) -> None:
    """--docs, --docs-file and --check, for a benchmark that writes its figures into a page of docs/."""
    parser.add_argument("--docs", action="store_true", help=f"write the figures of --out into docs/{page.name}")
    parser.add_argument("--docs-file", type=Path, default=page, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="with --docs: only say whether they are there")


def update(path: Path, sections: Mapping[str, str], source: Path, command: str, *, check: bool) -> int:
    """Put texts between their markers, `<!-- name -->` and `<!-- /name -->`, or say whether they stand there.

    Args:
        path: the page.
        sections: text by name.
        source: where its figures come from, for messages.
        command: what puts them there, likewise.
        check: change nothing.

    Returns:
        An exit code: 1 where a marker is missing, or with `check` a text.
    """
    text = path.read_text() if path.exists() else ""
    wanted = text
    for name, figures in sections.items():
        before, begin, rest = wanted.partition(f"<!-- {name} -->")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if not begin or not end:
            print(f"{path} has no lines <!-- {name} --> and <!-- /{name} --> to put figures between", file=sys.stderr)
            return 1
        wanted = f"{before}{begin}\n{figures}\n{end}{after}"
    if check and wanted != text:
        print(f"{path} does not show {source}: run {command}", file=sys.stderr)
        return 1
    if not check:
        path.write_text(wanted)
    return 0


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))
