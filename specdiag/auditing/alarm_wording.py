"""Alarms from weights alone in words. Names come from untrusted files: nothing in them is printed as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specdiag.auditing.direction_file import DIRECTION_CHECKS
from specdiag.auditing.records import AuditReport, Finding
from specdiag.function.alarm_records import Alarms, OutputRange, ScoreBound
from specdiag.text import markdown
from specdiag.text.counts import counted
from specdiag.text.printable import printable

HEADS = ("outputs of", "matrices", "largest bound", "float16", "bfloat16", "fp8 (E4M3)")
_LIMITS = (65504.0, 3.3895313892515355e38, 448.0)
_FEW = 5
_MISSED = (
    "Weak edits are not found: of strength .7 in up to 2 layers none, of .5 in up to 15 none; the limits rest on few "
    "clean models (docs/alarms.md)."
)


def sentences(audit: AuditReport) -> list[str]:
    """Describe the alarms of an audit: directions, channels, scores, and what was left out."""
    alarms = audit.alarms
    if alarms is None:
        return []
    lines = _directions(alarms, [f for f in audit.findings if f.check in DIRECTION_CHECKS])
    if alarms.channels:
        shown = ", ".join(f"{c.channel} ({c.size:.2f})" for c in alarms.channels)
        lines.append(f"Channels of the stream with the largest rows of down, over the median: {shown}.")
    if alarms.scores:
        lines.append(_scores(alarms.scores))
    if alarms.ranges:
        lines.append(
            "Bounds hold for any input, in exact arithmetic. Certified: no output exceeds the type. Not certified is "
            "no forecast. They are of the weights as stored; the head is not among them."
        )
    return [*lines, *(f"Left out: {printable(note)}" for note in alarms.notes)]


def rows(alarms: Alarms) -> list[tuple[str, ...]]:
    """Write a row for each role for the columns `HEADS`: how many matrices are certified for each type."""
    by_role: dict[str, list[OutputRange]] = {}
    for found in alarms.ranges:
        by_role.setdefault(found.role, []).append(found)
    return [
        (
            role,
            str(len(held)),
            f"{max(r.bound for r in held):.3g}",
            *(f"{sum(r.bound <= limit for r in held)} of {len(held)}" for limit in _LIMITS),
        )
        for role, held in by_role.items()
    ]


def to_markdown(audit: AuditReport) -> list[str]:
    """Write the alarms as the lines of a section of markdown; none where they were not asked for."""
    if audit.alarms is None:
        return []
    lines = ["### alarms", "", *(line for s in sentences(audit) for line in (markdown.text(s), ""))]
    if audit.alarms.ranges:
        lines += [f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows(audit.alarms)]
        lines.append("")
    return lines


def _directions(alarms: Alarms, findings: Sequence[Finding]) -> list[str]:
    if not alarms.writers:
        return []
    if findings:
        places = {w.key: (w.n_directions, w.layers) for w in alarms.writers}
        places |= {w.name: (w.n_directions, w.layers) for w in alarms.windows}
        lines = [_found(f, *places[f.module]) for f in findings if f.module in places]
        more = [f"{len(lines) - _FEW} more."] if len(lines) > _FEW else []
        return [*lines[:_FEW], *more]
    wide = [(w.ratio, w.key) for w in alarms.writers if w.ratio is not None]
    means = [(w.ratio, w.name) for w in alarms.windows]
    shared = [w.shared for w in alarms.writers if w.shared is not None]
    ratios = [f"{ratio:.3g} ({printable(name)})" for ratio, name in (*_least(wide), *_least(means))]
    ratios += [f"{min(shared):.3g} shared by two matrices"] if shared else []
    return [f"Removed directions: none found. Smallest ratios: {', '.join(ratios)}. {_MISSED}"]


def _least(pairs: list[tuple[float, str]]) -> list[tuple[float, str]]:
    return [min(pairs)] if pairs else []


def _found(finding: Finding, n_directions: int, layers: tuple[int, ...]) -> str:
    strength = ""
    if finding.check != "shared_direction":
        strength = f", strength at least {1 - max(float(finding.value), 0) ** 0.5:.2g}"
    where = f"; it lacks in layers {_ranges(layers)}" if layers else ""
    return f"{printable(finding.module or '')}: {counted(n_directions, 'direction')}{strength}{where}."


def _ranges(layers: Iterable[int]) -> str:
    """Write numbers with neighbours together: 0 to 4, 7."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][-1] + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in found)


def _scores(scores: Sequence[ScoreBound]) -> str:
    largest = max(scores, key=lambda s: s.bound)
    near = [s.at_positions for s in scores if s.at_positions is not None]
    distances = f" ({min(near):.3g} to {max(near):.3g} at 46 distances below 512)" if near else ""
    return (
        f"Bounds of attention scores: {min(s.bound for s in scores):.3g} to {largest.bound:.3g} over "
        f"{counted(len(scores), 'head')}{distances}; the largest in {printable(largest.key)}."
    )
