"""`specdiag doctor`: what is installed here, and what is missing for what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from . import options, output

if TYPE_CHECKING:
    from .machine import Machine


@output.guarded
def doctor(
    ctx: typer.Context,
    format: options.StateFormatOption = options.StateFormat.table,
) -> None:
    """Show versions, BLAS, processors, memory, GPU, cache, hub token, and what is missing.

    Exit codes: 0 ready, 1 something that every analysis needs is missing or wrong.
    """
    from .machine import examine

    found = examine()
    if format is options.StateFormat.json:
        from msgspec import json

        output.write(json.format(json.encode(found), indent=1))
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(1)


def _print(found: Machine) -> None:
    from .answer_output import show_facts
    from .machine import OPTIONAL

    console = output.console()
    missing = {name: use for name, use in OPTIONAL.items() if found.optional[name] is None}
    if found.problems:
        console.print(f"Not ready: {'; '.join(found.problems)}.", style="bold red", soft_wrap=True)
    else:
        console.print("Ready to analyse, compare, audit and plan.", style="bold green", soft_wrap=True)
    console.print()
    show_facts([*_facts(found)], console)
    if missing:
        console.print("Not installed, and needed for:")
        show_facts([*missing.items()], console)
        console.print(f"To install them: pip install {' '.join(missing)}", soft_wrap=True)


def _facts(found: Machine) -> Iterator[tuple[str, str]]:
    from specdiag.resources import format_size

    installed = {**found.versions, **found.optional}
    yield "specdiag", found.specdiag
    yield "Python", found.python
    yield "Packages", ", ".join(f"{name} {held}" for name, held in installed.items() if held is not None)
    yield "BLAS", found.blas
    yield "Processors", str(found.processors)
    yield "Memory", format_size(found.memory)
    yield "GPU", found.gpu
    kept, used = found.cache, f"{format_size(found.cache.bytes)} of {format_size(found.cache.limit)}"
    if kept.refused is not None:
        yield "Cache", f"not used: {kept.refused}"
    else:
        yield "Cache", "off" if kept.folder is None else f"{kept.folder}, {kept.entries:,} results, {used}"
    token = "present" if found.hub_token else "none: private and gated models need one (HF_TOKEN, or 'hf auth login')"
    yield "Hub token", token + (", but HF_HUB_OFFLINE forbids downloads" if found.hub_offline else "")
    yield "Browser", found.browser or "none that opens a window here: report --open prints the path alone"
