"""`specdiag export`: a checkpoint of a run for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import output


@output.guarded
def export(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Run, or one of its checkpoints.")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="New file: ckpt.pt for nanoGPT's train.py, or NAME.safetensors for the weights alone."
        ),
    ],
) -> None:
    """Write the newest checkpoint of a run as nanoGPT's ckpt.pt, with its optimizer, or as one safetensors file.

    Exit codes: 0 written, 2 usage, 3 source, 4 it could not be written.
    """
    from .train_output import quieten

    quieten()
    from specdiag.train.export import export as write

    for sentence in write(source, out):
        output.talk(sentence, "dim")
    output.talk(f"written: {out}", "green")
