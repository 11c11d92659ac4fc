"""`build_reference`: from checkpoints and reports to ranges of their numbers, every independent model counted once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from specdiag.analysis import options
from specdiag.analysis.options import AnalysisArguments
from specdiag.architecture.classes import MODEL_CLASSES, ModelClass, model_class
from specdiag.checkpoint.opening import is_location
from specdiag.errors import SourceError, UsageError
from specdiag.records import ROLES, Role, stored_role
from specdiag.reference.independence import Candidate, same_model
from specdiag.reference.peers import has_default_tail
from specdiag.reference.ranges import (
    METRICS,
    PROBABILITIES,
    Metric,
    Range,
    ReferenceRanges,
    ReferenceSource,
    is_comparable,
    measured,
    weights_digest,
)
from specdiag.report import SpectralReport, is_report, load_report
from specdiag.system.distributions import version

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource


def build_reference(
    sources: Sequence[AnalysisSource | SpectralReport],
    *,
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[AnalysisArguments],
) -> ReferenceRanges:
    """Collect the ranges that the numbers of several models have, by class of model and role.

    Models that share weights count once: the first of them is taken, and the others are listed with the reason.
    `docs/reading.md` has the rule. So name checkpoints rather than reports where several have the same shapes.

    Args:
        sources: checkpoints, as of `analyze`, and reports, saved or not.
        progress: as for `analyze`.
        analysis: further arguments of `analyze`, for the checkpoints.

    Returns:
        The ranges, and every source with the reason why it was left out, if it was.

    Raises:
        UsageError: an option makes no sense, or `sources` is no list.
        SourceError: a source cannot be read, or none of them has numbers to keep.

    Example:
        >>> found = specdiag.build_reference(["org/llama", "org/llama-chat"])
        >>> found.sources[1].left_out
        'the same model as org/llama: their weights have the cosine ...'
    """
    options.check(analysis)
    if is_location(sources) or not isinstance(sources, Sequence) or not sources:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError("sources= is a list of checkpoints and reports, of at least one")
    candidates: list[Candidate] = []
    reasons: list[str | None] = []
    for source in sources:
        found = _candidate(source, analysis, progress)
        independent = [c for c, reason in zip(candidates, reasons, strict=True) if reason is None]
        reasons.append(_unusable(found.report) or same_model(found, independent))
        candidates.append(found)
    ranges = _ranges(candidates, reasons)
    if not ranges:
        raise SourceError(f"no source can be used: {candidates[0].name}: {reasons[0]}")
    return ReferenceRanges(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version("specdiag"),
        sources=tuple(map(_described, candidates, reasons)),
        ranges=ranges,
    )


def _candidate(
    source: AnalysisSource | SpectralReport,
    analysis: AnalysisArguments,
    progress: Callable[[Progress], None] | None,
) -> Candidate:
    if isinstance(source, SpectralReport):
        return Candidate(source)
    if is_location(source) and is_report(Path(source)):
        return Candidate(load_report(source))
    from specdiag.analysis.analyze import analyze
    from specdiag.analysis.source import open_source
    from specdiag.checkpoint.model_card import read_card

    opening, computing = options.split(analysis)
    checkpoint = open_source(source, **opening)
    return Candidate(analyze(checkpoint, progress=progress, **computing), checkpoint, read_card(checkpoint))


def _unusable(report: SpectralReport) -> str | None:
    """Explain why the numbers of a report are not those of a whole transformer; None where they are."""
    settings, architecture = report.settings, report.provenance.architecture
    if not report.complete or settings.include or settings.exclude or settings.roles:
        return "not all of its matrices were analysed"
    comparable = [r for r in report.records if is_comparable(r)]
    if not any(r.family == "attention" for r in comparable):
        return "no transformer: it has no whole matrix of attention"
    if all(model_class(architecture, r.component) is None for r in comparable):
        return (
            f"the class of the architecture {architecture} is not known"
            if architecture
            else "its class is not known, for no config.json beside it names its architecture"
        )
    if not has_default_tail(settings):
        return "its alpha is not that of Hill's estimator at 0.5: analyse it without options of the tail"
    return None


def _ranges(candidates: Sequence[Candidate], reasons: Sequence[str | None]) -> tuple[Range, ...]:
    pools: defaultdict[tuple[ModelClass, Role, bool, Metric], list[tuple[int, float]]] = defaultdict(list)
    for model, (candidate, reason) in enumerate(zip(candidates, reasons, strict=True)):
        for r in filter(is_comparable, candidate.report.records if reason is None else ()):
            kind = model_class(candidate.report.provenance.architecture, r.component)
            for metric in METRICS:
                if kind is not None and (value := measured(r, metric)) is not None:
                    pools[kind, stored_role(r.role), r.cross_attention, metric].append((model, value))
    return tuple(_range(*place, pool) for place, pool in sorted(pools.items(), key=lambda item: _order(item[0])))


def _range(
    kind: ModelClass, role: Role, cross_attention: bool, metric: Metric, pool: Sequence[tuple[int, float]]
) -> Range:
    values = {model: [v for m, v in pool if m == model] for model in sorted({model for model, _ in pool})}
    return Range(
        model_class=kind,
        role=role,
        cross_attention=cross_attention,
        metric=metric,
        n_matrices=len(pool),
        models=tuple(values),
        quantiles=tuple(map(float, np.quantile([value for _, value in pool], PROBABILITIES))),
        least=tuple(map(min, values.values())),
        most=tuple(map(max, values.values())),
    )


def _order(place: tuple[ModelClass, Role, bool, Metric]) -> tuple[int, int, bool, int]:
    kind, role, cross, metric = place
    return MODEL_CLASSES.index(kind), ROLES.index(role), cross, METRICS.index(metric)


def _described(candidate: Candidate, reason: str | None) -> ReferenceSource:
    report = candidate.report
    return ReferenceSource(
        name=candidate.name,
        digest=weights_digest(report.records),
        architecture=report.provenance.architecture,
        n_parameters=report.summary.n_parameters,
        dtypes=tuple(sorted({r.storage_dtype for r in report.records})),
        base=candidate.base,
        licence=candidate.card.licence,
        left_out=reason,
    )
