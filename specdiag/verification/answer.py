"""The verdict of a verification, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median

from specdiag.records import Source
from specdiag.text.counts import counted
from specdiag.text.names import listed
from specdiag.verification.causes import SENTENCES
from specdiag.verification.records import Cause, NotCompared, TensorCheck, Verdict, Verification

_LOSSY = 0.95
"""Strength of a right merge below which its storage loses some of it."""

_OF_UPDATES: tuple[Cause, ...] = (
    "not applied", "applied twice", "subtracted", "wrong scale", "part of the update", "other base", "other update",
    "magnitudes left out",
)  # fmt: skip
"""Faults of modules that the adapter changes."""


def answer(
    base: Source,
    adapter: Source | None,
    model: Source,
    tensors: tuple[TensorCheck, ...],
    not_compared: tuple[NotCompared, ...],
    notes: tuple[str, ...],
    *,
    n_replaced: int = 0,
) -> Verification:
    """Put a verification together.

    Args:
        base: the first model.
        adapter: None where none was applied.
        model: what is verified.
        tensors: every pair.
        not_compared: every other tensor.
        notes: remarks on reading the models.
        n_replaced: tensors that an adapter without updates replaces.
    """
    verdict, reason = _decide(tensors, not_compared, merges=adapter is not None, n_replaced=n_replaced)
    return Verification(
        verdict=verdict, reason=reason, base=base, adapter=adapter, model=model, tensors=tensors,
        not_compared=not_compared, notes=(*notes, *_remarks(tensors)),
    )  # fmt: skip


def _decide(
    tensors: Sequence[TensorCheck], not_compared: Sequence[NotCompared], *, merges: bool, n_replaced: int
) -> tuple[Verdict, str]:
    causes = Counter[Cause](t.cause for t in tensors if t.outcome == "differs" and t.cause is not None)
    causes += Counter[Cause](n.cause for n in not_compared if n.cause is not None)
    if not tensors:
        return "not verified", "no tensor of one model has a counterpart in the other"
    if causes:
        # Where no update has a module, as with a base in the names of GGUF, that is why all the others differ.
        first = None if any(t.updated for t in tensors) else "module missing"
        cause, n = max(causes.items(), key=lambda item: (item[0] == first, item[1], item[0] in _OF_UPDATES))
        more = "" if len(causes) == 1 else f", and {counted(len(causes) - 1, 'more kind')} of fault"
        return "not verified", f"{SENTENCES[cause]} ({_counted(n, _of(cause, tensors))}{more})"
    unread = [t for t in tensors if t.outcome == "not compared"]
    if unread:
        return "cannot be told", f"{len(unread)} of {counted(len(tensors), 'tensor')} hold values that cannot be read"
    updated = [t for t in tensors if t.updated]
    told = [t for t in updated if t.outcome != "cannot be told" and t.cause != "no update"]
    if merges and not told and not n_replaced:
        empty = all(t.cause == "no update" for t in updated)
        return "cannot be told", f"{SENTENCES['no update' if empty else 'below the rounding']}{_where(updated)}"
    total = counted(len(tensors), "tensor")
    replayed = sum(t.outcome in ("equal", "rounded") for t in tensors)
    exact = f"{total if replayed == len(tensors) else f'{replayed} of {total}'} reproduced bit for bit"
    if n_replaced:
        return "verified", f"{counted(n_replaced, 'tensor')} replaced by the adapter's, {exact}"
    if merges:
        strength = median(t.strength for t in told if t.strength is not None)
        lossy = any(t.kept is not None and t.kept < _LOSSY for t in told)
        how = f"strength {strength:.3f}{' as stored' if lossy else ''}"
        return "verified", f"{counted(len(updated), 'update')} at {how}, {exact}"
    return "verified", _copied(tensors)


def _copied(tensors: Sequence[TensorCheck]) -> str:
    """Count the tensors that are equal, equal once the first model's are rounded, or close."""
    types = sorted({t.dtype_after for t in tensors if t.outcome == "rounded"})
    ways = {
        "equal": "equal",
        "rounded": f"equal once rounded to {listed(types)}",
        "within rounding": "within rounding",
    }
    counts = [(n, how) for outcome, how in ways.items() if (n := sum(t.outcome == outcome for t in tensors))]
    (first, how), *rest = counts
    total = counted(len(tensors), "tensor")
    head = f"{total} {how}" if not rest else f"{first} of {total} {how}"
    return ", ".join([head, *(f"{n} {how}" for n, how in rest)])


def _of(cause: Cause, tensors: Sequence[TensorCheck]) -> int | None:
    """Count the tensors among which a fault was looked for, where that says something."""
    return sum(t.updated or t.cause == cause for t in tensors) if cause in _OF_UPDATES else None


def _counted(n: int, total: int | None) -> str:
    return counted(n, "tensor") if total is None else f"{n} of {total} modules"


def _where(updated: Sequence[TensorCheck]) -> str:
    types = sorted({t.dtype_after for t in updated})
    return f" ({len(updated)} modules in {', '.join(types)})" if updated else " (it changes no module)"


def _remarks(tensors: Sequence[TensorCheck]) -> list[str]:
    notes: list[str] = []
    lossy = [t.kept for t in tensors if t.kept is not None and t.kept < _LOSSY and t.outcome != "differs"]
    if lossy:
        notes.append(
            f"{len(lossy)} updates are lossy in this storage: it keeps {min(lossy):.2f} to {max(lossy):.2f} of them "
            "(strength of a right merge); store them in a type of more precision."
        )
    swallowed = sum(t.outcome == "cannot be told" for t in tensors)
    if swallowed:
        notes.append(f"For {swallowed} modules casting W + D gives W itself: whether it was added cannot be told.")
    return notes
