"""Checks of what the blocks compute: removed directions, massive channels, bounds of outputs and of scores."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.architecture.wiring import UnknownWiring, find_wiring
from specdiag.auditing.direction_file import DIRECTION_CHECKS
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_RANGES = ("range_fp16", "range_bf16", "range_fp8")
_LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38, "F32": 3.4028234663852886e38}
_WIDE = 1.5

_EPS = 2.0**-23
"""Spacing of float32, in which weights are stored at best: what lies below it times the side is rounding."""


def directions(subject: Subject) -> Iterator[Observation]:
    """Find directions that lack in what is written to the stream.

    Without alarms=True the saved spectra of wide down projections are looked at, where the stream has RMS norms.

    Args:
        subject: the subject of the audit.

    Yields:
        Lowest eigenvalue over the next, of matrices and of means over layers.
    """
    if subject.alarms is None:
        yield from _stored_ratios(subject)
        return
    for writer in subject.alarms.writers:
        if writer.ratio is not None:
            yield Observation("removed_direction", writer.key, writer.ratio)
        if writer.shared is not None:
            yield Observation("shared_direction", writer.key, writer.shared)
    for window in subject.alarms.windows:
        check = "removed_direction_model" if window.is_whole else "removed_direction_layers"
        yield Observation(check, window.name, window.ratio)


def channels(subject: Subject) -> Iterator[Observation]:
    """Find coordinates of the stream that are written to far more than others.

    Args:
        subject: the subject of the audit, with its alarms.

    Yields:
        Norms of rows over the median.
    """
    for channel in () if subject.alarms is None else subject.alarms.channels:
        place = f"channel {channel.channel}"
        where = place if channel.component is None else f"{channel.component} {place}"
        yield Observation("massive_channel", where, channel.size)


def outputs(subject: Subject) -> Iterator[Observation]:
    """Find outputs that must overflow their type, and those that are not proven to stay within one.

    Args:
        subject: the subject of the audit, with its alarms.

    Yields:
        The least value of the largest output, and bounds.
    """
    for found in () if subject.alarms is None else subject.alarms.ranges:
        module = f"{found.key} (into it)" if found.role == "into down" else found.key
        limit = _LARGEST.get(found.dtype or "")
        if limit is not None and found.least > limit:
            yield Observation("overflow", module, found.least, limit)
        for check in _RANGES:
            yield Observation(check, module, found.bound)


def scores(subject: Subject) -> Iterator[Observation]:
    """Find heads whose scores are not proven to stay within float16.

    Args:
        subject: the subject of the audit, with its alarms.

    Yields:
        Bounds of scores at all positions.
    """
    for found in () if subject.alarms is None else subject.alarms.scores:
        yield Observation("score_bound", found.key, found.bound)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    alarms = subject.alarms
    if alarms is None:
        if not subject.is_checkpoint:
            needed = (*DIRECTION_CHECKS, "massive_channel", "overflow", *_RANGES, "score_bound")
            return dict.fromkeys(needed, "a report does not say what stands around its matrices: audit the checkpoint")
        reason = _why_no_stored_ratio(subject)
        return {} if reason is None else {"removed_direction": reason}
    reason = alarms.notes[0].rstrip(".") if alarms.notes else "no block with attention or an MLP was found"
    found = {
        "removed_direction": any(w.ratio is not None for w in alarms.writers),
        "shared_direction": any(w.shared is not None for w in alarms.writers),
        "removed_direction_model": any(w.is_whole for w in alarms.windows),
        "massive_channel": bool(alarms.channels),
        "overflow": any(r.dtype is not None for r in alarms.ranges),
        **dict.fromkeys(_RANGES, bool(alarms.ranges)),
        "score_bound": bool(alarms.scores),
    }
    reasons = {check: reason for check, is_there in found.items() if not is_there}
    if not any(not w.is_whole for w in alarms.windows):
        reasons["removed_direction_layers"] = "it has fewer than nine layers" if alarms.windows else reason
    if alarms.ranges and "overflow" in reasons:
        reasons["overflow"] = "nothing says in which type the outputs of quantised weights are computed"
    if alarms.writers and "removed_direction" in reasons:
        reasons["removed_direction"] = "no matrix that writes to the stream has 1.5 columns a row"
    return reasons


def _stored_ratios(subject: Subject) -> Iterator[Observation]:
    report = subject.report
    for r in report.records:
        if _is_looked_at(subject, r):
            eigenvalues = report.eigenvalues(r.key)
            low = eigenvalues[:2]
            if low[1] > (max(r.rows, r.cols) * _EPS) ** 2 * eigenvalues[-1]:  # else two are gone, or are rounding
                yield Observation("removed_direction", r.key, max(float(low[0]), 0.0) / float(low[1]))


def _is_looked_at(subject: Subject, r: ModuleRecord) -> bool:
    """Tell whether a row is a wide matrix that writes to a stream with RMS norms, and has a whole spectrum."""
    sides = sorted((r.rows, r.cols))
    is_whole = r.n_slices == 1 and r.n_eigenvalues == sides[0] > 1 and not r.n_dead_rows and not r.n_dead_cols
    if r.role != "down" or not is_whole or sides[1] < _WIDE * sides[0] or subject.is_of_base(r):
        return False
    if _is_foreign(subject, r):
        return False
    return r.key not in subject.updates and subject.report.has_eigenvalues and _is_rms(subject, r.component)


def _is_foreign(subject: Subject, r: ModuleRecord) -> bool:
    """Tell whether the model of config.json has no such matrix, so that its wiring says nothing of it."""
    return subject.reference is not None and r.name in subject.reference.unused


def _is_rms(subject: Subject, component: str | None) -> bool:
    try:
        return find_wiring(subject.config, component).norm == "rms"
    except UnknownWiring:
        return False


def _why_no_stored_ratio(subject: Subject) -> str | None:
    if any(_is_looked_at(subject, r) for r in subject.report.records):
        return None
    downs = [r for r in subject.report.records if r.role == "down"]
    if any(_is_foreign(subject, r) for r in downs):
        return "config.json is that of another model: it has no such down projections"
    components = {r.component for r in downs}
    try:
        norms = {find_wiring(subject.config, component).norm for component in components}
    except UnknownWiring as error:
        return str(error)
    return (
        "needs alarms=True where norms are LayerNorms" if "layer" in norms else "no wide down projection was analysed"
    )
