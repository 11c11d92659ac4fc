"""`specdiag reference`: ranges of the numbers of models that work, made of checkpoints of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options, output, targets
from .commands import add, make_program
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from specdiag.reference.ranges import ReferenceRanges

reference = make_program("reference", "Make reference ranges, with which other models are compared.")


@takes_shared("reference")
@output.guarded
def build(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Hub ids, directories, weight files, or saved reports of models that work.",
            show_default=False,
        ),
    ],
    *,
    given: Given,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File of the ranges, .json.", rich_help_panel=options.OUTPUT)
    ],
) -> None:
    """Save the ranges of square_alpha, rho, stable rank and spikes by role and class of model.

    Models that share weights count once. analyze, report, audit and compare use a range (--reference) if at least 5
    independent models of the class have the role.

    Exit codes: 0 done, 2 usage, 3 source, 4 computation, 130 stopped by Ctrl-C.
    """
    from specdiag.reference.build import build_reference
    from specdiag.report import is_report

    from .progress import analysis_bar

    targets.check_file(out, "json")
    targets.check_apart(out, *sources)
    for source in sources:
        if is_report(Path(source)):
            given.require_checkpoint(source)
    try:
        with analysis_bar() as bar:
            found = build_reference(sources, progress=bar, **given.analysis())
    except KeyboardInterrupt:
        output.talk("interrupted: nothing was saved", "yellow")
        output.leave()
    found.save(out)
    _show(found)
    output.talk(f"written: {out}", "green")


def _show(found: ReferenceRanges) -> None:
    from specdiag.architecture.classes import MODEL_CLASSES
    from specdiag.reference.ranges import NEEDED
    from specdiag.text.counts import abbreviated

    console = output.console()
    for kind in MODEL_CLASSES:
        models = sorted({model for r in found.ranges if r.model_class == kind for model in r.models})
        if models:
            roles = dict.fromkeys(r.role for r in found.ranges if r.model_class == kind)
            names = ", ".join(f"{found.sources[m].name} ({abbreviated(found.sources[m].n_parameters)})" for m in models)
            few = "" if len(models) >= NEEDED else f"; {NEEDED} are needed for a comparison"
            console.print(f"{kind}, roles {', '.join(roles)}: {names}{few}", soft_wrap=True)
    for source in found.sources:
        if source.left_out is not None:
            console.print(f"left out: {source.name}: {source.left_out}", soft_wrap=True)


add(reference, build, "specdiag reference build org/one org/two runs/mine -o mine.reference.json")
