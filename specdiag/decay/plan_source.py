"""Sources of a plan: a report as it is, or the analysis of anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from specdiag.analysis.options import UnselectedArguments
from specdiag.checkpoint.opening import is_location
from specdiag.errors import UsageError
from specdiag.report import SpectralReport, is_report, load_report

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource


def report_of(
    source: AnalysisSource | SpectralReport,
    progress: Callable[[Progress], None] | None,
    analysis: UnselectedArguments,
    defaults: UnselectedArguments,
) -> SpectralReport:
    """Take a report as it is, saved or not, and analyse anything else.

    Args:
        source: a report, its file, or what `analyze` takes.
        progress: called while the source is analysed.
        analysis: options of `analyze` that were given.
        defaults: options of `analyze` where none was given.

    Raises:
        UsageError: options were given for a report.
        SourceError: the source cannot be read.
    """
    if is_location(source) and is_report(Path(source)):
        source = load_report(source)
    if isinstance(source, SpectralReport):
        if analysis:
            raise UsageError(f"a report is taken as it is: {', '.join(analysis)} needs the checkpoint itself")
        return source
    from specdiag.analysis.analyze import analyze

    arguments: UnselectedArguments = {**defaults, **analysis}
    return analyze(source, progress=progress, **arguments)


def linear_weights(source: object) -> list[str] | None:
    """Name the Linear and Conv2d weights of a live model, in definition order; None for other sources.

    Args:
        source: of a plan.
    """
    named_modules = getattr(source, "named_modules", None)
    if named_modules is None:
        return None
    from torch import nn

    modules = cast("Iterable[tuple[str, object]]", named_modules())
    return [f"{name}.weight" for name, module in modules if isinstance(module, (nn.Linear, nn.Conv2d))]
