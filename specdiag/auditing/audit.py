"""`audit`: from a report, or a checkpoint, to what is wrong with it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from specdiag import checks as checking
from specdiag.analysis import options
from specdiag.analysis.options import AnalysisArguments
from specdiag.auditing import baseline as against
from specdiag.auditing import decay, expectations, shards, spectra, structure, values
from specdiag.auditing.records import SEVERITIES, AuditReport, Coverage, DecayAnswer, Finding
from specdiag.auditing.thresholds import Check, Observation, findings, load_checks
from specdiag.checkpoint.opening import is_location, is_on_hub
from specdiag.errors import UsageError
from specdiag.records import Settings, Source
from specdiag.report import SpectralReport, is_report, load_report

if TYPE_CHECKING:
    import torch

    from specdiag.analysis.analyze import Progress
    from specdiag.checkpoint.tensors import Checkpoint

_STRUCTURE = ("layer_gap", "missing_matrix", *expectations.CONFIG_CHECKS)
_OF_THE_SOURCE = ("revision", "file", "base", "resume")
"""Options that say what is audited, and nothing about the baseline."""
_SHARED = ("tail", "tail_fraction", "include", "exclude", "roles")
"""Settings of a report that the baseline is analysed with."""


def audit(
    source: str | os.PathLike[str] | SpectralReport | torch.nn.Module | Mapping[str, torch.Tensor] | Checkpoint,
    *,
    baseline: str
    | os.PathLike[str]
    | SpectralReport
    | torch.nn.Module
    | Mapping[str, torch.Tensor]
    | Checkpoint
    | None = None,
    thresholds: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    weight_decay: float | None = None,
    lr: float | None = None,
    steps: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[AnalysisArguments],
) -> AuditReport:
    """What is wrong with a checkpoint: bad values, broken matrices, a broken promise of config.json, odd spectra.

    Args:
        source: a report, saved or not, or anything that `analyze` takes. A report is audited in milliseconds; a
            checkpoint is held against its config.json too, and its norm gains and biases are read.
        baseline: another one, with which module by module is compared.
        thresholds: a TOML file, or a mapping, that changes checks: see `docs/audit.md`.
        weight_decay: AdamW's, of the run: are the weights of the size that it leads to?
        lr: peak learning rate of that run.
        steps: its optimizer steps.
        progress: as for `analyze`.
        analysis: further arguments of `analyze`, where the source is a checkpoint; `randomize=True` looks for
            correlation traps.

    Raises:
        UsageError: an option makes no sense for this source, or a threshold is not understood.
        SourceError: the source cannot be read.

    Example:
        >>> found = specdiag.audit("org/name")
        >>> found.verdict, found.counts
        ('pass', {'fail': 0, 'warn': 0, 'info': 0})
    """
    options.check(analysis)
    checks = load_checks(thresholds)
    weight_decay, lr = (
        None if value is None else checking.number(name, value, above=0, hint="of the run")
        for name, value in (("weight_decay", weight_decay), ("lr", lr))
    )
    steps = None if steps is None else checking.whole("steps", steps, least=1, hint="the optimizer steps of the run")
    if (weight_decay is None) != (lr is None) or (steps is not None and lr is None):
        raise UsageError("the decay check needs weight decay and lr of the run, both; steps go with them")
    opened = _open(source, analysis, progress, square=baseline is not None)
    report = opened.report
    reference = None if baseline is None else _baseline(baseline, opened, analysis, progress)
    answer = None
    if weight_decay is not None and lr is not None:
        answer = decay.answer_on_decay(report.records, weight_decay, lr, steps, checks["decay"])
    not_checked = _not_checked(checks, opened, reference, answer)
    observed = (o for o in _observe(opened, checks, reference, answer) if o.check not in not_checked)
    order = {check: i for i, check in enumerate(checks)}
    found = sorted(findings(observed, checks), key=lambda f: (SEVERITIES.index(f.severity), order[f.check]))
    counts = Counter(f.severity for f in found)
    return AuditReport(
        source=report.source,
        baseline=None if reference is None else reference.source,
        verdict=_verdict(found),
        counts={severity: counts[severity] for severity in SEVERITIES},
        findings=tuple(found),
        coverage=Coverage(
            n_tensors=report.summary.n_tensors,
            n_matrices=len(report),
            n_others=opened.n_others,
            checks=tuple(check for check in checks if check not in not_checked),
            not_checked=not_checked,
            notes=report.provenance.notes,
        ),
        decay=answer,
    )


@dataclass(frozen=True)
class _Opened:
    """A source with everything that was read of it."""

    report: SpectralReport
    is_checkpoint: bool = False
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    n_others: int | None = None
    others: tuple[Observation, ...] = ()


def _open(
    source: Any, analysis: AnalysisArguments, progress: Callable[[Progress], None] | None, *, square: bool
) -> _Opened:
    if is_location(source) and is_report(Path(source)):
        source = load_report(source)
    if isinstance(source, SpectralReport):
        if refused := analysis.keys() - {"cache"}:
            raise UsageError(f"a report is taken as it is: {', '.join(sorted(refused))} needs the checkpoint itself")
        return _Opened(source)
    from specdiag.analysis.analyze import analyze, open_source
    from specdiag.auditing.others import others, read_others
    from specdiag.checkpoint.tensors import Checkpoint

    opening, computing = options.split(analysis)
    checkpoint = open_source(source, **opening)
    chosen: dict[str, Any] = {"square": square, **computing}
    report = analyze(checkpoint, progress=progress, **chosen)
    beside = None if isinstance(source, Checkpoint) else others(checkpoint)
    return _Opened(
        report,
        is_checkpoint=True,
        config=checkpoint.config,
        n_others=None if beside is None else len(beside),
        others=tuple(read_others(beside or ())),
    )


def _baseline(
    baseline: Any, opened: _Opened, analysis: AnalysisArguments, progress: Callable[[Progress], None] | None
) -> SpectralReport:
    if is_location(baseline) and is_report(Path(baseline)):
        return load_report(baseline)
    if isinstance(baseline, SpectralReport):
        return baseline
    from specdiag.analysis.analyze import analyze

    same = {name: getattr(opened.report.settings, name) for name in _SHARED}
    given: dict[str, Any] = {name: value for name, value in analysis.items() if name not in _OF_THE_SOURCE}
    if not is_on_hub(baseline):
        given.pop("stream", None)
    return analyze(baseline, progress=progress, **(same | given))


def _observe(
    opened: _Opened, checks: Mapping[str, Check], reference: SpectralReport | None, answer: DecayAnswer | None
) -> Iterator[Observation]:
    """Everything that was measured, in stored order within each check."""
    report = opened.report
    records, skipped = report.records, report.skipped
    if not report.complete:
        yield Observation("incomplete", None, f"{len(records)} matrices")
    yield from values.values(records)
    yield from opened.others
    yield from values.left_out(skipped)
    yield from structure.matrices(records)
    yield from structure.stored_twice(skipped)
    yield from structure.layers(records, skipped)
    if shards.one_of(report.source) is None:
        yield from shards.extra(report.source, report.provenance.notes)
    if opened.is_checkpoint:
        architecture = report.provenance.architecture
        yield from expectations.expectations(records, skipped, opened.config, architecture)
    yield from spectra.traps(records)
    yield from spectra.norm_outliers(records, checks["norm_outlier"])
    yield from spectra.random(records, checks["random"], checks["untrained"])
    if reference is not None:
        yield from against.changes(report, reference)
    if answer is not None:
        yield from decay.decay(answer)


def _not_checked(
    checks: Mapping[str, Check], opened: _Opened, reference: SpectralReport | None, answer: DecayAnswer | None
) -> dict[str, str]:
    """Which checks were not made, and why; the first reason that holds."""
    report = opened.report
    absent = {
        "checkpoint": None if opened.is_checkpoint else "a report does not carry config.json: audit the checkpoint",
        "randomize": None if report.settings.randomize else "needs --randomize",
        "baseline": None if reference is not None else "needs --baseline",
        "decay": None if answer is not None else "needs --weight-decay and --lr",
    }
    reasons = {check.id: reason for check in checks.values() if (reason := absent.get(check.needs)) is not None}
    if opened.is_checkpoint:
        reasons |= expectations.unsaid(report.records, opened.config, report.provenance.architecture)
    partial = _partial(report.settings, report.source) or (None if report.complete else "the report is incomplete")
    if partial is not None:
        reasons |= dict.fromkeys(_STRUCTURE, partial)
    if not any(r.z is not None for r in report.records):
        reasons |= dict.fromkeys(("random", "untrained"), "needs alpha by hill at tail fraction 0.5")
    least = checks["random"].at_least or 0
    if not any(r.z is not None and min(r.rows, r.cols) >= least for r in report.records):
        reasons |= dict.fromkeys(("random", "untrained"), f"no matrix has {least} eigenvalues")
    if all(r.matrix_rank is None or r.dequantized for r in report.records):
        reasons["rank"] = "needs float64, and weights that are not quantised"
    if reference is not None:
        reasons |= against.incomparable(report, reference)
    reasons |= {check.id: "switched off" for check in checks.values() if not check.enabled}
    return {check: reasons[check] for check in checks if check in reasons}


def _partial(settings: Settings, source: Source) -> str | None:
    """Why what is absent says nothing: only some of the matrices were asked for."""
    if settings.include or settings.exclude or settings.roles or settings.experts is not None:
        return "only a selection of the matrices was asked for"
    total = shards.one_of(source)
    return None if total is None else f"{source.files[0]} is one shard of {total}"


def _verdict(found: Iterable[Finding]) -> Any:
    severities = {f.severity for f in found}
    return "fail" if "fail" in severities else "warn" if "warn" in severities else "pass"
