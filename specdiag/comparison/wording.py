"""A comparison in sentences that claim no more than its numbers."""

from __future__ import annotations

from math import pi

from specdiag.comparison.records import Comparison, ModuleChange
from specdiag.text.counts import counted
from specdiag.text.names import listed


def most_changed(comparison: Comparison, n: int) -> list[ModuleChange]:
    """Find the matrices that moved furthest. Those that are equal on both sides are left out.

    They are sorted by relative change of the weights, or, without weights, by |change of square_alpha|, else of alpha.
    Those that lost a number (NaN, collapse) come first.

    Args:
        comparison: as `compare` returned it.
        n: how many to give.
    """

    def moved(change: ModuleChange) -> tuple[bool, float]:
        lost = change.after.status != change.before.status
        if change.delta is not None:
            return lost, change.delta.relative_change or 0.0
        values = (change.change.get(metric) for metric in ("square_alpha", "alpha"))
        return lost, abs(next((v for v in values if v is not None), 0.0))

    return sorted((m for m in comparison.modules if not m.unchanged), key=moved, reverse=True)[:n]


def sentences(comparison: Comparison) -> list[str]:
    """Describe what matched, how far the weights and the alphas moved, and the balance.

    Args:
        comparison: as `compare` returned it.
    """
    unread = [
        f"{side}: {source.unread}"
        for side, source in (("BEFORE", comparison.before), ("AFTER", comparison.after))
        if source.unread
    ]
    return [
        *unread,
        *_matched(comparison),
        *_moved(comparison),
        *_alphas(comparison),
        *_statuses(comparison),
        *_balance(comparison),
        *comparison.notes,
    ]


def _matched(comparison: Comparison) -> list[str]:
    n_only = [sum(u.role is not None for u in side) for side in (comparison.only_before, comparison.only_after)]
    equal = sum(m.unchanged is True for m in comparison.modules)
    text = f"{counted(len(comparison.modules), 'matrix', 'matrices')} matched"
    for prefix, side in ((comparison.prefix_before, "BEFORE"), (comparison.prefix_after, "AFTER")):
        text += f", without the prefix '{prefix}' of {side}" if prefix else ""
    text += f"; {equal} of them equal" if equal else ""
    text += f"; {n_only[0]} only before, {n_only[1]} only after, {len(comparison.reshaped)} of other shape."
    return [text]


def _moved(comparison: Comparison) -> list[str]:
    if comparison.cosine is None:
        return []
    return [f"Cosine between all matched weights before and after: {comparison.cosine:.4f}."]


def _alphas(comparison: Comparison) -> list[str]:
    inside = [r for r in comparison.roles if r.family in ("attention", "mlp") and r.abs_alpha is not None]
    if not inside:
        return []
    n = sum(r.n for r in inside)
    mean = sum((r.abs_alpha or 0) * r.n for r in inside) / n
    sds = [(r.alpha_sd, r.n) for r in inside if r.alpha_sd is not None]
    text = f"Over attention and MLP |change of alpha| is {mean:.4f} on average"
    if len(sds) == len(inside):
        sd = sum(sd * k for sd, k in sds) / n
        text += f"; two random matrices of one shape differ by {2 / pi**0.5 * sd:.4f}"
    return [text + "."]


def _statuses(comparison: Comparison) -> list[str]:
    changed = [m for m in comparison.modules if m.before.status != m.after.status]
    if not changed:
        return []
    names = listed(f"{m.name} ({m.before.status} → {m.after.status})" for m in changed)
    return [f"Another status after: {names}."]


def _balance(comparison: Comparison) -> list[str]:
    b = comparison.balance
    if b is None:
        return []
    return [
        f"Balance of square_alpha over {b.n} attention and MLP matrices: standard deviation {b.sd_before:.3f} → "
        f"{b.sd_after:.3f}, range {b.range_before:.3f} → {b.range_after:.3f}."
    ]
