"""Opening what is audited: everything that the checks look at is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from specdiag.analysis import options
from specdiag.analysis.options import AnalysisArguments, ComputedArguments
from specdiag.auditing.records import SELECTION
from specdiag.auditing.reference import CHECKS
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Check
from specdiag.auditing.weight_files import weight_files
from specdiag.checkpoint.opening import is_location
from specdiag.errors import SourceError, UsageError
from specdiag.report import SpectralReport, is_report, load_report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource
    from specdiag.auditing.adapter_screen import Screen
    from specdiag.checkpoint.shards import RepeatedKey
    from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
    from specdiag.function.alarm_records import Alarms

    Stored: TypeAlias = Sequence[StoredTensor] | None
    """The tensors of a checkpoint; None where they are not listed."""

_SELECTING = ("include", "exclude", "roles", "experts")
"""Options that leave matrices out: what is absent then says nothing."""


def open_subject(
    source: AnalysisSource | SpectralReport,
    checks: Mapping[str, Check],
    analysis: AnalysisArguments,
    progress: Callable[[Progress], None] | None,
    *,
    reference_model: bool,
    tokens: int,
    alarms: bool,
) -> tuple[Subject, Stored, Mapping[str, NDArray[np.float64]]]:
    """Open what is audited, and read everything that the checks look at.

    Args:
        source: a report, or what `analyze` takes.
        checks: every check by id.
        analysis: arguments of `analyze`.
        progress: as for `analyze`.
        reference_model: compare with transformers' own model.
        tokens: rows of tables of tokens to list; 0 for no table.
        alarms: look for alarms of the function.

    Returns:
        The subject, the tensors of the checkpoint, and the directions of the alarms by name.

    Raises:
        UsageError: an argument makes no sense for a report.
        SourceError: the source cannot be read.
    """
    if is_location(source) and is_report(Path(source)):
        source = load_report(source)
    if isinstance(source, SpectralReport):
        asked = {name for name, given in (("tokens", tokens), ("alarms", alarms)) if given}
        if refused := (analysis.keys() - {"cache"}) | asked:
            raise UsageError(f"a report is taken as it is: {', '.join(sorted(refused))} needs the checkpoint itself")
        return Subject(source, checks), None, {}
    from specdiag.analysis.source import list_source
    from specdiag.auditing import reference_model as reference
    from specdiag.auditing.other_files import read_other_files
    from specdiag.auditing.others import others, read_others
    from specdiag.auditing.token_tables import read_tables
    from specdiag.checkpoint.tensors import Checkpoint

    opening, computing = options.split(analysis)
    try:
        checkpoint = list_source(source, **opening)
    except SourceError:
        if opening.get("base") is None:
            raise
        checkpoint = list_source(source, **{**opening, "base": None})  # an adapter that fits no base has findings alone
        if not any(defect.kind == "rank" for defect in checkpoint.defects):
            raise
    needed = any(checks[check].enabled for check in CHECKS)
    left_out = None if reference_model and needed else "the comparison with transformers' own model is switched off"
    if any(analysis.get(option) for option in _SELECTING):
        left_out = SELECTION
    with reference.compared(checkpoint, left_out=left_out) as comparison:
        report = _analyzed(checkpoint, computing, progress)
        found, directions = _alarms(checkpoint, report) if alarms else (None, {})
        small_tensors = None if isinstance(source, Checkpoint) else others(checkpoint)
        beside, other_files, names = read_other_files(checkpoint, checks) if is_location(source) else ((), None, None)
        subject = Subject(
            report,
            checks,
            is_checkpoint=True,
            config=checkpoint.config,
            beside=beside,
            other_files=other_files,
            names=names,
            adapter=checkpoint.adapter,
            screens=_screens(checkpoint, report, checks),
            defects=checkpoint.defects,
            updates=frozenset(matrix.key for matrix in checkpoint.matrices if matrix.rank is not None),
            n_others=None if small_tensors is None else len(small_tensors),
            others=tuple(read_others(small_tensors or ())),
            files=weight_files(checkpoint),
            repeated=_repeated_keys(checkpoint),
            reference=comparison.answer(),
            tokens=read_tables(checkpoint, report, tokens) if tokens else None,
            alarms=found,
        )
    return subject, checkpoint.stored, directions


def _repeated_keys(checkpoint: Checkpoint) -> tuple[RepeatedKey, ...]:
    from specdiag.checkpoint.folder import reopened

    folder = reopened(checkpoint)
    return () if folder is None else folder.repeated_keys()


def _analyzed(
    checkpoint: Checkpoint, computing: ComputedArguments, progress: Callable[[Progress], None] | None
) -> SpectralReport:
    """Analyse what is audited. Of an adapter without any matrix the report says that it is empty."""
    from specdiag.analysis.analyze import analyze, report_without_matrices
    from specdiag.analysis.options import AnalysisOptions

    if checkpoint.adapter is not None and not checkpoint.matrices:
        return report_without_matrices(checkpoint, AnalysisOptions.of(computing))
    return analyze(checkpoint, progress=progress, **computing)


def _alarms(checkpoint: Checkpoint, report: SpectralReport) -> tuple[Alarms, Mapping[str, NDArray[np.float64]]]:
    from specdiag.function.alarms import look_for_alarms
    from specdiag.system.blas_threads import OneBlasThread

    with OneBlasThread():
        return look_for_alarms(checkpoint, report.settings.device)


def _screens(checkpoint: Checkpoint, report: SpectralReport, checks: Mapping[str, Check]) -> tuple[Screen, ...]:
    """Measure the updates of an adapter that were analysed; singular vectors only where a check asks for them."""
    from specdiag.auditing.adapter_screen import screen
    from specdiag.system.blas_threads import OneBlasThread

    family = {r.name: r.family for r in report.records}
    embeddings = {name for name, kind in family.items() if kind == "embedding"}
    with_base = checks["adapter_norm"].enabled or checks["adapter_intruders"].enabled
    updates = tuple(update for update in checkpoint.updates if update.name in family)
    with OneBlasThread():
        return tuple(screen(updates, embeddings, with_base=with_base))
