"""A verification in words and as markdown. Names come from untrusted files: nothing in them is printed as markup."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from specdiag.text import markdown
from specdiag.text.counts import counted
from specdiag.text.printable import printable
from specdiag.verification.causes import ADVICE
from specdiag.verification.records import NotCompared, TensorCheck, Verification

FEW = 5
"""Tensors of one kind that are listed where not all are asked for."""
Row = tuple[str, str, str]
HEADS: Row = ("tensor", "found", "detail")


def headline(found: Verification) -> str:
    """Write the verdict in a line."""
    return f"{found.verdict.upper()}: {printable(str(found.model))}: {found.reason}"


def faults(found: Verification, *, all_rows: bool) -> list[Row]:
    """List what counts against the model, a few tensors of each kind where there are many.

    Args:
        found: as `verify` returned it.
        all_rows: list every one.
    """
    by_cause: dict[str, list[TensorCheck | NotCompared]] = defaultdict(list)
    for fault in found.faults:
        by_cause[fault.cause or "not compared"].append(fault)
    rows: list[Row] = []
    for cause, group in by_cause.items():
        shown = group if all_rows or len(group) <= FEW + 1 else group[:FEW]
        rows += [(printable(fault.name), cause, printable(_detail(fault))) for fault in shown]
        if len(shown) < len(group):
            rows.append((f"and {len(group) - len(shown)} more (--all)", cause, ""))
    return rows


def advice(cause: str) -> str:
    """Say what to do about a fault; empty where that is open."""
    return next((text for name, text in ADVICE.items() if name == cause), "")


def lines(rows: Sequence[Row]) -> list[str]:
    """Write rows under a line for each kind of fault.

    Args:
        rows: as `faults` gave them.
    """
    written: list[str] = []
    kind = ""
    for name, cause, detail in rows:
        if cause != kind:
            written += ["", f"{cause}. What to do: {advice(cause)}" if advice(cause) else cause]
            kind = cause
        written.append(f"  {name}: {detail}" if detail else f"  {name}")
    return written


def details(found: Verification) -> list[Row]:
    """List every tensor that does not count against the model."""
    rows = [(printable(t.name), t.outcome, printable(numbers(t))) for t in found.tensors if t not in found.faults]
    return rows + [
        (printable(n.name), "not compared", printable(n.reason)) for n in found.not_compared if n.cause is None
    ]


def numbers(check: TensorCheck) -> str:
    """Write the numbers of a tensor."""
    parts = [check.dtype if check.dtype == check.dtype_after else f"{check.dtype} → {check.dtype_after}"]
    if check.name_after != check.name:
        parts.append(f"as {check.name_after}")
    if check.layout != "as stored":
        parts.append(check.layout)
    if check.strength is not None:
        parts.append(f"strength {check.strength:.3f}")
    if check.outcome == "within rounding" and check.residual is not None and check.rounding is not None:
        parts.append(f"residual {check.residual:.2g}, rounding explains {check.rounding:.2g}")
    if check.arithmetic is not None and check.outcome != "equal":
        parts.append(check.arithmetic)
    return "; ".join(parts)


def sentences(found: Verification) -> list[str]:
    """Write what was compared, what was not, and the remarks."""
    outcomes = Counter(t.outcome for t in found.tensors)
    words = {"rounded": "equal once rounded"} | ({"differs": "differ"} if outcomes["differs"] > 1 else {})
    compared = ", ".join(f"{n} {words.get(outcome, outcome)}" for outcome, n in outcomes.items())
    said = [
        f"Compared {counted(len(found.tensors), 'tensor')}: {compared}." if found.tensors else "Nothing was compared."
    ]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for entry in found.not_compared:
        if entry.cause is None:
            by_reason[entry.reason].append(entry.name)
    for reason, names in by_reason.items():
        rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
        said.append(printable(f"Not compared: {names[0]}{rest} ({reason})."))
    sources = [("BASE", found.base), ("ADAPTER", found.adapter), ("MODEL", found.model)]
    said += [printable(f"{side}: {source.unread}") for side, source in sources if source is not None and source.unread]
    return [*said, *(printable(note) for note in found.notes)]


def to_markdown(found: Verification, *, all_rows: bool = False) -> bytes:
    """Write the verification as markdown, for a pull request or a job summary.

    Args:
        found: as `verify` returned it.
        all_rows: list every tensor.
    """
    written = [f"## specdiag verify: {markdown.text(headline(found))}", ""]
    rows = faults(found, all_rows=all_rows)
    for listed in (rows, details(found) if all_rows else []):
        written += _table(listed)
    for cause in dict.fromkeys(row[1] for row in rows if advice(row[1])):
        written += [f"{markdown.text(cause)}. **What to do:** {markdown.text(advice(cause))}.", ""]
    return "\n".join([*written, *(line for s in sentences(found) for line in (markdown.text(s), ""))]).encode()


def _table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    head = [f"| {' | '.join(HEADS)} |", "| --- | --- | --- |"]
    return [*head, *(f"| {markdown.code(a)} | {markdown.text(b)} | {markdown.text(c)} |" for a, b, c in rows), ""]


def _detail(fault: TensorCheck | NotCompared) -> str:
    return fault.reason if isinstance(fault, NotCompared) else fault.detail
