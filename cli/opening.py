"""From SOURCE to a report, for the commands that only look at one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import SourceError

from . import output
from .sharing import Given

if TYPE_CHECKING:
    from specdiag.checkpoint.opening import OpeningArguments
    from specdiag.report import SpectralReport


def report_of(source: str, given: Given, purpose: str, *, drawing: tuple[str, ...] = ()) -> SpectralReport:
    """A saved report, or the analysis of a checkpoint.

    Args:
        source: as it was typed.
        given: the shared options that were given.
        purpose: a word for the person who may prefer to save the report of a checkpoint.
        drawing: those of the options that choose among the rows of a report.

    Raises:
        UsageError: an option needs the checkpoint and this is a saved report.
        SourceError: there is no such source.
    """
    from specdiag.report import is_report, load_report

    if is_report(Path(source)):
        given.require_checkpoint(source, without=drawing)
        return load_report(source)
    from specdiag.analysis.analyze import analyze
    from specdiag.analysis.options import split
    from specdiag.analysis.source import open_source

    from .progress import analysis_bar

    opening, computing = split(given.analysis(without=drawing))
    checkpoint = open_source(checkpoint_of(source, opening), **opening)
    output.talk(f"analysing {source} for this {purpose} alone; 'specdiag analyze' saves the report for the next", "dim")
    with analysis_bar() as bar:
        return analyze(checkpoint, **computing, progress=bar)


def checkpoint_of(source: str, opening: OpeningArguments) -> str:
    """The newest checkpoint of a run directory; anything else as it was typed.

    Args:
        source: as it was typed.
        opening: arguments of `specdiag.analysis.analyze.open_source`.
    """
    if not Path(source).is_dir():
        return source
    from specdiag.analysis.source import open_source
    from specdiag.trajectories.steps import find_steps

    try:
        open_source(source, **opening)
    except SourceError:
        if _holds_weights(Path(source)):
            raise
        try:
            newest = find_steps(source)[-1].location
        except SourceError:
            return source
        output.talk(f"taking the newest checkpoint of this run, {newest}", "dim")
        return newest
    return source


def _holds_weights(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint itself, even a damaged one: runs hold torch files of other kinds."""
    from specdiag.checkpoint.formats import TORCH_SUFFIXES, WEIGHT_SUFFIXES

    suffixes = tuple(suffix for suffix in WEIGHT_SUFFIXES if suffix not in TORCH_SUFFIXES)
    return any(path.name.endswith(suffixes) or path.name.startswith("pytorch_model") for path in folder.glob("*"))


def stem(source: str) -> str:
    """Name of a file about this source in the working directory, before its suffix."""
    name = Path(source).resolve().name if Path(source).exists() else source
    return re.sub(r"[^\w.-]+", "--", re.sub(r"(\.specdiag)?\.json$|\.parquet$", "", name)).strip("-.")
