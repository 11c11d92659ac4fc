"""From SOURCE to a report, for the commands that only look at one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options, output

if TYPE_CHECKING:
    from specdiag.report import SpectralReport


def report_of(source: str, analysis: Mapping[str, Any], what: str) -> SpectralReport:
    """A saved report, or the analysis of a checkpoint.

    Args:
        source: as it was typed.
        analysis: arguments of `specdiag.analyze` that were given.
        what: a checkpoint is analysed for, for the person who may prefer to save it.

    Raises:
        UsageError: an option needs the checkpoint and this is a saved report.
    """
    from specdiag.report import is_report, load_report

    if is_report(Path(source)):
        options.require_checkpoint(source, analysis)
        return load_report(source)
    from specdiag.analysis.analyze import analyze

    from .progress import analysis_bar

    output.talk(f"analysing {source} for this {what} alone; 'specdiag analyze' saves the report for the next", "dim")
    with analysis_bar() as bar:
        return analyze(source, **analysis, cache=options.cache_folder(), progress=bar)


def stem(source: str) -> str:
    """What a file about this source is called in the working directory, before its suffix."""
    name = Path(source).resolve().name if Path(source).exists() else source
    return re.sub(r"[^\w.-]+", "--", re.sub(r"(\.specdiag)?\.json$", "", name)).strip("-.")
