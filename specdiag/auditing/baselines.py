"""The other checkpoint of an audit: opened and analysed as the source was, once for all sources that go with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.analysis import options
from specdiag.analysis.options import AnalysisArguments, ComputedArguments, OpeningArguments
from specdiag.checkpoint.opening import is_location, is_on_hub
from specdiag.errors import UsageError
from specdiag.records import Settings
from specdiag.report import SpectralReport, is_report, load_report

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource
    from specdiag.checkpoint.tensors import StoredTensor

    Opened = tuple[SpectralReport, Sequence[StoredTensor] | None]
    """The report, and the tensors of a checkpoint; None where they are not listed."""

_OF_THE_SOURCE = ("revision", "file", "base", "partial_reports")
"""Options that say what is audited, and nothing about the baseline."""
_SHARED = ("tail", "tail_fraction", "include", "exclude", "roles")
"""Settings of a report that the baseline is analysed with."""


class KeptBaseline:
    """A checkpoint as the baseline of several audits: it is read for the first, and again only for other settings."""

    def __init__(self, source: str | os.PathLike[str]) -> None:
        """Take the place; nothing is read yet.

        Args:
            source: a path or a hub id, no saved report.
        """
        self._source = source
        self._settings: object = None
        self._opened: Opened | None = None

    def open(
        self, settings: Settings, analysis: AnalysisArguments, progress: Callable[[Progress], None] | None
    ) -> Opened:
        """Open and analyse it, unless that was done with these settings.

        Args:
            settings: of the report that it is compared with.
            analysis: as for `audit`.
            progress: likewise.

        Raises:
            UsageError: a part or an option does not fit it.
            SourceError: it cannot be read.
        """
        asked = _arguments(self._source, settings, analysis)
        if self._opened is None or self._settings != asked:
            self._opened, self._settings = _open(self._source, *asked, progress), asked
        return self._opened


def open_baseline(
    baseline: AnalysisSource | SpectralReport | KeptBaseline,
    settings: Settings,
    analysis: AnalysisArguments,
    progress: Callable[[Progress], None] | None,
) -> Opened:
    """Open and analyse a baseline as the source was, unless it is a report.

    Args:
        baseline: as for `audit`.
        settings: of the report that it is compared with.
        analysis: as for `audit`.
        progress: likewise.

    Raises:
        UsageError: a part or an option does not fit it.
        SourceError: it cannot be read.
    """
    if isinstance(baseline, KeptBaseline):
        return baseline.open(settings, analysis, progress)
    if isinstance(baseline, SpectralReport):
        return baseline, None
    if is_location(baseline) and is_report(Path(baseline)):
        return load_report(baseline), None
    return _open(baseline, *_arguments(baseline, settings, analysis), progress)


def _arguments(
    baseline: AnalysisSource, settings: Settings, analysis: AnalysisArguments
) -> tuple[OpeningArguments, ComputedArguments]:
    """Collect the arguments of its opening and of its analysis."""
    own = {name: value for name, value in analysis.items() if name not in _OF_THE_SOURCE}
    if not is_location(baseline):
        own.pop("part", None)
    if not is_on_hub(baseline):
        own.pop("stream", None)
    return options.split(options.like(settings, _SHARED, own))


def _open(
    baseline: AnalysisSource,
    opening: OpeningArguments,
    computing: ComputedArguments,
    progress: Callable[[Progress], None] | None,
) -> Opened:
    from specdiag.analysis.analyze import analyze
    from specdiag.analysis.source import open_source

    try:
        checkpoint = open_source(baseline, **opening)
    except UsageError as error:
        if "part" not in opening:
            raise
        raise UsageError(f"part is of the baseline too, and {error}; or give a saved report as the baseline") from error
    return analyze(checkpoint, progress=progress, **computing), checkpoint.stored
