"""`audit`: from a report, or a checkpoint, to its faults."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack, cast

from specdiag.analysis import options
from specdiag.analysis.options import AnalysisArguments
from specdiag.auditing import decay, dispatch
from specdiag.auditing.baselines import KeptBaseline, open_baseline
from specdiag.auditing.direction_file import check_target, write_directions
from specdiag.auditing.excuses import excuse
from specdiag.auditing.identity import CHECK, compare_with_baseline
from specdiag.auditing.open_subject import open_subject
from specdiag.auditing.records import NO_CONFIG, SEVERITIES, AuditReport, AuditVerdict, Coverage, Finding
from specdiag.auditing.stated_run import stated_run
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import findings, load_checks
from specdiag.auditing.weight_files import placed
from specdiag.checkpoint.opening import is_location
from specdiag.decay.schedule_record import LrShape
from specdiag.errors import UsageError
from specdiag.reference.ranges import ReferenceLike, the_reference
from specdiag.report import SpectralReport, is_report
from specdiag.text import checks as checking

if TYPE_CHECKING:
    import torch

    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource
    from specdiag.checkpoint.tensors import Checkpoint


def audit(
    source: AnalysisSource | SpectralReport,
    *,
    baseline: str
    | os.PathLike[str]
    | SpectralReport
    | torch.nn.Module
    | Mapping[str, torch.Tensor]
    | Checkpoint
    | KeptBaseline
    | None = None,
    thresholds: str | os.PathLike[str] | Mapping[str, object] | None = None,
    weight_decay: float | None = None,
    lr: float | None = None,
    steps: int | None = None,
    lr_shape: LrShape | None = None,
    warmup: int = 0,
    final_lr: float | None = None,
    initial_rms: float | None = None,
    reference_model: bool = True,
    reference: ReferenceLike = None,
    tokens: int = 0,
    alarms: bool = False,
    save_directions: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[AnalysisArguments],
) -> AuditReport:
    """Check a checkpoint for bad values, broken matrices, mismatches with config.json, and unusual spectra.

    Args:
        source: a report, saved or not, or anything that `analyze` takes. A report is audited in milliseconds; a
            checkpoint is compared with its config.json too, and its norm gains and biases are read.
        baseline: another source, with which every module is compared; `part` chooses a model in both.
        thresholds: a TOML file, or a mapping, that changes checks: see `docs/audit.md`.
        weight_decay: AdamW's decay in the run; checks that the weights have the size that it leads to. Needs `lr`.
        lr: peak learning rate of that run.
        steps: its optimizer steps. What is not given of these and the following is unknown: the range of sizes then
            covers what is plausible.
        lr_shape: course of its lr after the warm-up: `constant`, `linear` or `cosine`.
        warmup: its steps from lr 0 to the peak.
        final_lr: last lr of a linear or cosine schedule.
        initial_rms: root mean square of its weights before the first step.
        reference_model: compare names and shapes of a checkpoint with transformers' own model of its config.json,
            where transformers is installed. It is built without values, in a process beside the analysis that takes
            about four seconds; nothing that config.json names is run. Without it, rules on names and shapes hold.
        reference: ranges of other models to hold the matrices against, as `build_reference` made them; None for those
            that come with specdiag. What lies outside is listed as a fact, and is no fault.
        tokens: look for rows of the token embedding and the head that training hardly touched, and list so many; 0 for
            not. A table is read once more, and takes about as long as its spectrum.
        alarms: look for removed directions and massive channels, and prove bounds of outputs and attention scores,
            where the wiring of the architecture is known. The weights are read once more, a block at a time.
        save_directions: a safetensors file for the directions that alarms=True found to be removed, [k, d] by the key
            of a matrix or the name of a range of layers. Nothing is written where none was found.
        progress: as for `analyze`.
        analysis: further arguments of `analyze`, where the source is a checkpoint; `randomize=True` looks for
            correlation traps.

    Returns:
        The verdict, its findings, and which checks ran.

    Raises:
        UsageError: an option makes no sense for this source, or a threshold is not understood.
        SourceError: the source cannot be read.

    Example:
        >>> found = specdiag.audit("org/name")
        >>> found.verdict, found.counts
        ('pass', {'fail': 0, 'warn': 0, 'info': 0})
    """
    options.check(analysis)
    checking.flag("reference_model", reference_model)
    checking.whole("tokens", tokens, least=0)
    checking.flag("alarms", alarms)
    if save_directions is not None and not alarms:
        raise UsageError("save_directions= needs alarms=True, which finds them")
    if save_directions is not None:
        check_target(checking.path("save_directions", save_directions))
    checks = load_checks(thresholds)
    ranges = the_reference(reference)
    run = stated_run(
        weight_decay=weight_decay, lr=lr, steps=steps, lr_shape=lr_shape, warmup=warmup, final_lr=final_lr,
        initial_rms=initial_rms,
    )  # fmt: skip
    of_source = analysis
    has_part = isinstance(baseline, KeptBaseline) or (is_location(baseline) and not is_report(Path(baseline)))
    if has_part and _is_report(source):
        of_source = cast("AnalysisArguments", {name: value for name, value in analysis.items() if name != "part"})
    subject, stored, directions = open_subject(
        source, checks, of_source, progress, reference_model=reference_model, tokens=tokens, alarms=alarms
    )
    report = subject.report
    before, identity = None, None
    if baseline is not None:
        before, old = open_baseline(baseline, report.settings, analysis, progress)
        if checks[CHECK].enabled:
            identity = compare_with_baseline(report, stored, before, old)
    answer = None if run is None else decay.answer_on_decay(report.records, run, checks["decay"])
    subject = replace(subject, baseline=before, identity=identity, decay=answer, ranges=ranges)
    not_checked = _not_checked(subject)
    observed = dispatch.observe(subject, (check for check in checks.values() if check.id not in not_checked))
    place = {check: i for i, check in enumerate(checks)}
    found = (placed(finding, subject.files) for finding in findings(observed, checks))
    counting, excused = excuse(found, checks)
    faults = sorted(counting, key=lambda f: (SEVERITIES.index(f.severity), place[f.check]))
    counts = Counter(f.severity for f in faults)
    if save_directions is not None:
        write_directions(checking.path("save_directions", save_directions), faults, directions, str(report.source))
    return AuditReport(
        source=report.source,
        baseline=None if before is None else before.source,
        verdict=_verdict(faults),
        counts={severity: counts[severity] for severity in SEVERITIES},
        findings=tuple(faults),
        coverage=Coverage(
            n_tensors=report.summary.n_tensors,
            n_matrices=len(report),
            n_others=subject.n_others,
            checks=tuple(check for check in checks if check not in not_checked),
            not_checked=not_checked,
            files=dict(subject.other_files or {}),
            names_alone=_names_alone(subject),
            own_code="auto_map" in subject.config,
            notes=tuple(note for note in report.provenance.notes if note != report.source.unread),
            excused=excused,
        ),
        decay=answer,
        tokens=subject.tokens or (),
        alarms=subject.alarms,
    )


def _is_report(source: AnalysisSource | SpectralReport) -> bool:
    return isinstance(source, SpectralReport) or (is_location(source) and is_report(Path(source)))


def _not_checked(subject: Subject) -> dict[str, str]:
    """List the checks that do not run, each with its reason. A check that is switched off has that reason alone."""
    missing = {
        "checkpoint": None if subject.is_checkpoint else NO_CONFIG,
        "randomize": None if subject.report.settings.randomize else "needs randomize=True",
        "baseline": None if subject.baseline is not None else "needs baseline=",
        "tokens": None if subject.tokens is not None else "needs tokens=",
        "alarms": None if subject.alarms is not None else "needs alarms=True",
        "decay": None if subject.decay is not None else "needs weight_decay= and lr=",
    }
    checks = subject.checks.values()
    reasons = {check.id: reason for check in checks if (reason := missing.get(check.needs)) is not None}
    reasons |= dispatch.not_checked(subject)
    reasons |= {check.id: "switched off" for check in checks if not check.enabled}
    return {check: reasons[check] for check in subject.checks if check in reasons}


def _names_alone(subject: Subject) -> str | None:
    """Explain why transformers' own model was not used; None where it was, and where it refuses config.json."""
    found = subject.reference
    if found is None:
        return NO_CONFIG
    return None if found.refused_config is not None else found.reason


def _verdict(faults: Iterable[Finding]) -> AuditVerdict:
    severities = {f.severity for f in faults}
    return "fail" if "fail" in severities else "warn" if "warn" in severities else "pass"
