"""The sentences beside a plan: what has no value, what lies outside, and which value alone sets the range."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.decay.outside import outside_the_plan
from specdiag.decay.plan import Basis, PlanEntry
from specdiag.decay.targets import DecayTarget
from specdiag.report import SpectralReport
from specdiag.text.counts import percent
from specdiag.text.names import listed

_OUTLIER = 0.2
"""A smallest or largest value is reported as an outlier if this share of the range or more lies next to it."""
_ENOUGH = 8
"""Outliers are reported for this many values or more."""


def plan_notes(report: SpectralReport, entries: Sequence[PlanEntry], clip: tuple[float, float] | None) -> list[str]:
    """Say what a reader of a plan must know of it: what it lacks, and what alone shapes it.

    Args:
        report: of which the plan is made.
        entries: of the plan.
        clip: percentiles to which values were clipped; an outlier is named where they were not.
    """
    notes: list[str] = []
    if not report.complete:
        notes.append("The report is incomplete (interrupted): matrices that it lacks are not in the plan.")
    missing = [entry for entry in entries if entry.value is None]
    if len(missing) == len(entries):
        notes.append(
            f"No ratio could be derived: none of {len(entries)} Parameters has a value ({entries[0].note}). For an "
            "adapter analyse W + delta with base=."
        )
    elif missing:
        notes.append(
            f"{len(missing)} of {len(entries)} stay at ratio 1: {listed((f'{e.name} ({e.note})' for e in missing), 3)}."
        )
    if any(file.endswith(".gguf") for file in report.source.files):
        notes.append("Names are those of GGUF: to apply the plan to a model, make it from the original checkpoint.")
    computed = [record.name for record in report.records if record.parametrized]
    if computed:
        notes.append(
            f"No decay is planned for {len(set(computed))} weights that are computed from other Parameters (weight "
            f"norm, spectral norm, pruning), such as {computed[0]}: shrinking those does not shrink them alike."
        )
    if any(record.dequantized for record in report.records):
        notes.append("Exponents are those of dequantised weights: rounding makes heavy-tailed modules look lighter.")
    outlier = _outlier(entries) if clip is None else None
    if outlier is not None:
        entry, share = outlier
        notes.append(
            f"{entry.name} alone sets the range: its value {entry.value:.3f} lies {percent(share)} of it from the "
            "next. clip=(5, 95) tames it."
        )
    unnamed = [r.name for r in report.records if r.family in ("attention", "mlp") and r.role == "other"]
    if unnamed:
        notes.append(f"{len(unnamed)} matrices of attention or MLP have no role that takes part: {listed(unnamed, 3)}.")
    return [*notes, *outside_the_plan(report.records, planned={entry.name for entry in entries})]


def missing_note(target: DecayTarget, basis: Basis) -> str:
    """Say why a Parameter has no value and stays at ratio 1.

    Args:
        target: the Parameter.
        basis: value that the plan reads.
    """
    statuses = sorted({record.status for record in target.records if record.status != "ok"})
    if basis == "function" and not statuses:
        return "no balanced form (its wiring is unknown): ratio 1"
    return f"no {basis} ({', '.join(statuses) or 'not computed'}): ratio 1"


def _outlier(entries: Sequence[PlanEntry]) -> tuple[PlanEntry, float] | None:
    """Find the entry whose value alone stretches the range, and by which share of it."""
    known = sorted((e for e in entries if e.value is not None), key=lambda e: e.value or 0.0)
    if len(known) < _ENOUGH:
        return None
    values = [entry.value or 0.0 for entry in known]
    span = values[-1] - values[0]
    if span == 0:
        return None
    gaps = (((values[1] - values[0]) / span, known[0]), ((values[-1] - values[-2]) / span, known[-1]))
    share, entry = max(gaps, key=lambda gap: gap[0])
    return (entry, share) if share >= _OUTLIER else None
