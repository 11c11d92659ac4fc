"""The `specdiag` program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from specdiag.system.distributions import version

from . import output
from .analyze import analyze
from .audit import audit
from .cache import cache
from .commands import add, make_program
from .compare import compare
from .doctor import doctor
from .explain import explain
from .export import export
from .lineage import lineage
from .plot import plot
from .recommend import recommend
from .reference import reference
from .report import report
from .simulate import simulate
from .train import train
from .trajectory import trajectory
from .verify import verify
from .watch import watch

app = make_program("specdiag", "Spectral diagnostics of transformer checkpoints.")


_PANELS: dict[str, dict[Callable[..., None], str]] = {
    "Look at a model": {
        analyze: "specdiag analyze org/name -o name.specdiag.json",
        report: "specdiag report name.specdiag.json --open",
        plot: "specdiag plot heatmap name.specdiag.json -o heatmap.svg",
        explain: "specdiag explain square_alpha",
    },
    "Check and compare": {
        audit: "specdiag audit org/name --fail-on warn",
        compare: "specdiag compare org/base org/fine-tune",
        verify: "specdiag verify org/base org/adapter merged/",
        lineage: "specdiag lineage org/base org/fine-tune org/merge",
    },
    "Follow and plan a run": {
        recommend: "specdiag recommend name.specdiag.json --weight-decay 0.1 --lr 3e-4 --steps-left 20000",
        simulate: "specdiag simulate --lr 3e-4 --weight-decay 0.1 --steps 20000 --lr-shape cosine",
        trajectory: "specdiag trajectory runs/mine",
        watch: "specdiag watch runs/mine --to trackio",
        train: "specdiag train tiny-llama-bytes --data text/ -o runs/mine",
        export: "specdiag export runs/mine ckpt.pt",
    },
    "This machine": {
        doctor: "specdiag doctor",
    },
}
"""The commands in the order of help, each with an example."""

for _panel, _commands in _PANELS.items():
    for _command, _example in _commands.items():
        add(app, _command, _example, _panel)
app.add_typer(reference, rich_help_panel="Check and compare")
app.add_typer(cache, rich_help_panel="This machine")


def _print_version(value: bool) -> None:
    if value:
        print(f"specdiag {version('specdiag')}")  # noqa: T201
        raise typer.Exit


@app.callback()
def main(
    ctx: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print data and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more on stderr.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="SPECDIAG_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Spectral diagnostics of transformer checkpoints."""
    ctx.obj = {"quiet": quiet, "verbose": verbose, "debug": debug}
    output.configure(**ctx.obj)
