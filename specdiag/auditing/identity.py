"""The check whether anything changed since the baseline, over all tensors, norm gains and biases included.

A merge that lost its adapter, or a run that saved what it had loaded, leaves the values that it began with.
A conversion to another type or other files leaves them too: `specdiag verify` says whether it is a right one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from specdiag.auditing import shards
from specdiag.auditing.buffers import is_buffer
from specdiag.auditing.subject import Identity, Subject
from specdiag.auditing.thresholds import Observation
from specdiag.comparison.matching import match
from specdiag.errors import SourceError
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.text.counts import counted

if TYPE_CHECKING:
    from specdiag.checkpoint.tensors import StoredTensor

CHECK = "baseline_identical"
_NO_MATTER = re.compile(r"tied to .*|buffer.*|empty.*")
"""Reasons to leave a tensor out that holds nothing which training moves, or the values of another one."""


DIFFERENT = Identity()


def identical(subject: Subject) -> Iterator[Observation]:
    """Observe that nothing changed.

    Args:
        subject: the subject of the audit, with the answer on its baseline.
    """
    if subject.identity is not None and subject.identity.equal is not None:
        yield Observation(CHECK, None, subject.identity.equal)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the check where it could not be made, with the reason.

    Args:
        subject: the subject of the audit.
    """
    unknown = None if subject.identity is None else subject.identity.unknown
    return {} if unknown is None else {CHECK: unknown}


def compare_with_baseline(
    report: SpectralReport,
    stored: Sequence[StoredTensor] | None,
    baseline: SpectralReport,
    baseline_stored: Sequence[StoredTensor] | None,
) -> Identity:
    """Say whether every tensor has the values of its counterpart in the baseline.

    Digests in the reports are compared first, and the first difference ends the comparison. Tensors of two types, and
    those that are no matrices, are read. The baseline may hold more, such as a head that is tied here.

    Args:
        report: of the checkpoint.
        stored: its tensors, None where they are not listed.
        baseline: the report of the baseline.
        baseline_stored: its tensors, None where they are not listed.

    Returns:
        The answer.
    """
    for side, where in ((report, "here"), (baseline, "in the baseline")):
        reason = shards.partial(side)
        if reason is not None:
            return Identity(unknown=f"{reason} ({where})")
    old, new = ({r.key: r for r in side} for side in (baseline, report))
    before = {ours: old[theirs] for theirs, ours, _ in match(old, new).pairs}
    if not new or any(name not in before or not _may_equal(r, before[name]) for name, r in new.items()):
        return DIFFERENT
    blank = next((r.key for name, r in new.items() if None in (r.digest, before[name].digest)), None)
    if blank is not None:
        return Identity(unknown=f"the reports hold no digest of {blank}")
    others = {s.name for s in report.skipped if not _NO_MATTER.fullmatch(s.reason) and not is_buffer(s.name)}
    cast = {r.name for name, r in new.items() if r.storage_dtype != before[name].storage_dtype}
    if not others and not cast:
        return Identity(equal=f"{len(new)} matrices, equal bit for bit")
    listed = {tensor.name for tensor in stored or ()}
    if stored is None or baseline_stored is None or not (others | cast) <= listed:
        equal = "some are of two types" if cast else "norm gains and biases are not in a report"
        return Identity(unknown=f"no matrix differs, and {equal}: give both checkpoints")
    try:
        different = _differs(stored, others | cast, {t.name: t for t in baseline_stored})
    except (SourceError, OSError) as error:
        return Identity(unknown=str(error))
    how = "equal but for the rounding of a coarser type" if cast else "equal bit for bit"
    return DIFFERENT if different else Identity(equal=f"{counted(len(stored), 'tensor')}, {how}")


def _differs(stored: Sequence[StoredTensor], names: Set[str], old: Mapping[str, StoredTensor]) -> bool:
    """Tell whether one of the named tensors differs from its counterpart or has none. The smallest are read first."""
    from specdiag.auditing.same_values import can_compare, difference, is_finer

    counterpart = {ours: old[theirs] for theirs, ours, _ in match(old, [t.name for t in stored]).pairs}
    for tensor in sorted((t for t in stored if t.name in names), key=lambda t: t.nbytes):
        before = counterpart.get(tensor.name)
        if before is None or before.shape != tensor.shape or not can_compare(tensor, before):
            return True
        if difference(tensor, before, exact=is_finer(tensor, before)) is not None:
            return True
    return False


def _may_equal(now: ModuleRecord, before: ModuleRecord) -> bool:
    """Tell whether two records leave open that the values are equal."""
    if (now.rows, now.cols, now.n_slices) != (before.rows, before.cols, before.n_slices):
        return False
    return (
        now.storage_dtype != before.storage_dtype or None in (now.digest, before.digest) or now.digest == before.digest
    )
