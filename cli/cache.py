"""`specdiag cache`: what is kept of earlier analyses, and how to be rid of it."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdiag.errors import UsageError

from . import options, output
from .commands import add, make_program

if TYPE_CHECKING:
    from specdiag.analysis.cache_store import Amount, Store

cache = make_program("cache", "Show or remove kept results of earlier analyses.")


@output.guarded
def info(
    ctx: typer.Context,
    format: options.StateFormatOption = options.StateFormat.table,
) -> None:
    """Show the folder of kept results, their number, their size and the limit.

    Exit codes: 0 done, 2 the folder cannot be trusted or the cache is switched off.
    """
    from msgspec import json

    from specdiag.resources import format_size

    from .answer_output import show_facts

    folder, store = _store()
    amount, oldest = store.amount(), store.oldest()
    when = None if oldest is None else datetime.fromtimestamp(oldest).astimezone().isoformat(timespec="seconds")
    if format is options.StateFormat.json:
        values = {"folder": str(folder), "entries": amount.entries, "bytes": amount.bytes, "limit": store.limit}
        output.write(json.format(json.encode(values | {"oldest": when}), indent=1))
        return
    facts = [
        ("Folder", str(folder)),
        ("Entries", f"{amount.entries:,}, {format_size(amount.bytes)} of {format_size(store.limit)}"),
    ]
    if when is not None:
        facts.append(("Oldest", f"last read {when}"))
    show_facts(facts, output.console())


@output.guarded
def prune(
    ctx: typer.Context,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            parser=options.parse_size,
            metavar="SIZE",
            help="Bytes that may stay, such as 500M.",
            show_default="the limit, $SPECDIAG_CACHE_SIZE",
            rich_help_panel=options.CONTENT,
        ),
    ] = None,
) -> None:
    """Remove the least recently read results until the rest fits the limit. Other files in the folder stay.

    Exit codes: 0 done, 2 the folder cannot be trusted or the cache is switched off.
    """
    folder, store = _store()
    _tell(folder, store, store.prune(store.limit if to is None else to))


@output.guarded
def clear(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=options.EXECUTION)] = False,
) -> None:
    """Remove all kept results, after asking. Other files in the folder stay.

    Exit codes: 0 done, 1 not confirmed, 2 the folder cannot be trusted or the cache is switched off.
    """
    from specdiag.resources import format_size

    folder, store = _store()
    amount = store.amount()
    if amount.entries and not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody can be asked here: add --yes to remove all kept results")
        question = f"Remove {amount.entries:,} results ({format_size(amount.bytes)}) from {folder}? [y/N] "
        output.console(stderr=True).print(question, soft_wrap=True, end="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise typer.Exit(1)
    _tell(folder, store, store.prune(0))


def _store() -> tuple[Path, Store]:
    """The folder of kept results, refused as an analysis refuses it."""
    from specdiag.analysis.cache_ownership import ForeignFolderError, check_folder
    from specdiag.analysis.cache_store import Store

    folder = options.cache_folder()
    if folder is None:
        raise UsageError("no results are kept: SPECDIAG_CACHE is set to nothing, or there is no home directory")
    try:
        for each in (folder, folder / "results"):
            check_folder(each)
    except ForeignFolderError as error:
        raise UsageError(f"{folder} is left alone: {error}") from error
    return folder, Store(folder)


def _tell(folder: Path, store: Store, removed: Amount) -> None:
    from specdiag.resources import format_size

    left = store.amount()
    output.console().print(
        f"Removed {removed.entries:,} results ({format_size(removed.bytes)}) from {folder}; "
        f"{left.entries:,} stay ({format_size(left.bytes)}).",
        soft_wrap=True,
    )


add(cache, info, "specdiag cache info")
add(cache, prune, "specdiag cache prune --to 500M")
add(cache, clear, "specdiag cache clear --yes")
