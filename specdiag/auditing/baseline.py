"""Checks against another report: modules that came, went or changed shape, values, exponents and norms."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.analysis.options import FARMS
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.comparison.matching import match
from specdiag.records import ModuleRecord


def changes(subject: Subject) -> Iterator[Observation]:
    """Compare the matrices of a report with those of its baseline, by name.

    Args:
        subject: the subject of the audit; without a baseline nothing is compared.

    Yields:
        Matrices that came, went, changed shape or hold other values, and how far their numbers moved.
    """
    report, baseline = subject.report, subject.baseline
    if baseline is None:
        return
    old, new = ({r.key: r for r in rows} for rows in (baseline, report))
    pairs = match(old, new).pairs
    paired, before_of = {theirs for theirs, _, _ in pairs}, {ours: old[theirs] for theirs, ours, _ in pairs}
    skipped_new, skipped_old = ({s.name for s in side.skipped} for side in (report, baseline))
    for name, r in old.items():
        if name not in paired and r.name not in skipped_new:
            yield Observation("baseline_missing" if _is_inside(r) else "baseline_head", r.key, "not there")
    unchanged: list[str] = []
    for name, r in new.items():
        before = before_of.get(name)
        if before is None:
            if r.name not in skipped_old:
                check = "baseline_extra" if _is_inside(r) else "baseline_head"
                yield Observation(check, r.key, "not in the baseline")
        elif _shape(r) != _shape(before):
            yield Observation("baseline_reshaped", r.key, f"{_shape(before)} -> {_shape(r)}")
        elif r.storage_dtype == before.storage_dtype and r.digest is not None and r.digest == before.digest:
            unchanged.append(r.key)
        else:
            yield from _changed(before, r)
    if len(unchanged) < len(pairs):
        yield from (Observation("baseline_unchanged", name, "equal values") for name in unchanged)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks that the two reports do not allow, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    report, baseline = subject.report, subject.baseline
    if baseline is None:
        return {}
    reasons: dict[str, str] = {}
    for name in ("tail", "tail_fraction", *FARMS):
        ours, theirs = getattr(report.settings, name), getattr(baseline.settings, name)
        if ours != theirs:
            reasons["baseline_alpha"] = f"the {name.replace('_', ' ')} is {ours} here and {theirs} in the baseline"
    return reasons


def _is_inside(r: ModuleRecord) -> bool:
    """Tell whether the matrix lies in a layer or embeds. Others, such as heads, are replaced with the task."""
    return r.layer is not None or r.role == "embed"


def _changed(before: ModuleRecord, now: ModuleRecord) -> Iterator[Observation]:
    if now.storage_dtype != before.storage_dtype:
        yield Observation("baseline_dtype", now.key, f"{before.storage_dtype} -> {now.storage_dtype}")
    else:
        norms = now.frobenius_norm, before.frobenius_norm
        moved = norms[0] / norms[1] - 1 if norms[0] is not None and norms[1] else "other values"
        yield Observation("baseline_changed", now.key, moved)
    if now.status != before.status:
        yield Observation("baseline_status", now.key, f"{before.status} -> {now.status}")
    if now.alpha is not None and before.alpha is not None:
        from specdiag.spectra.tail_rules import alpha_sd

        sd = alpha_sd(now.tail, now.living_shape, now.n_slices)
        if sd is not None:
            yield Observation("baseline_alpha", now.key, abs(now.alpha - before.alpha) / sd)
    if now.square_alpha is not None and before.square_alpha is not None:
        from specdiag.spectra.square import square_sd

        sd = square_sd(now.living_shape)
        yield Observation("baseline_square_alpha", now.key, abs(now.square_alpha - before.square_alpha) / sd)
    for check, ours, theirs in (
        ("baseline_norm", now.frobenius_norm, before.frobenius_norm),
        ("baseline_stable_rank", now.stable_rank, before.stable_rank),
    ):
        if ours and theirs:
            yield Observation(check, now.key, max(ours / theirs, theirs / ours))


def _shape(r: ModuleRecord) -> str:
    return f"{r.rows}x{r.cols}" + (f"x{r.n_slices}" if r.n_slices > 1 else "")
