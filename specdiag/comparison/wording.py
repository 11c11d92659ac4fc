"""A comparison in sentences that claim no more than its numbers."""

from __future__ import annotations

from math import pi

from specdiag.comparison.records import Comparison, ModuleChange
from specdiag.text.names import listed


def most_changed(found: Comparison, n: int) -> list[ModuleChange]:
    """The matrices that moved furthest: by relative change of the weights, else by |change of square_alpha, alpha|.

    Those that lost a number (NaN, collapse) come first.
    """

    def moved(change: ModuleChange) -> tuple[bool, float]:
        lost = change.after.status != change.before.status
        if change.delta is not None:
            return lost, change.delta.relative_change or 0.0
        values = (change.change.get(metric) for metric in ("square_alpha", "alpha"))
        return lost, abs(next((v for v in values if v is not None), 0.0))

    return sorted(found.modules, key=moved, reverse=True)[:n]


def sentences(found: Comparison) -> list[str]:
    """Describe what matched, how far the weights and the alphas moved, and the balance."""
    unread = [
        f"{side}: {source.unread}"
        for side, source in (("BEFORE", found.before), ("AFTER", found.after))
        if source.unread
    ]
    return [
        *unread,
        *_matched(found),
        *_moved(found),
        *_alphas(found),
        *_statuses(found),
        *_balance(found),
        *found.notes,
    ]


def _matched(found: Comparison) -> list[str]:
    n_only = [sum(u.role is not None for u in side) for side in (found.only_before, found.only_after)]
    equal = sum(m.unchanged is True for m in found.modules)
    text = f"{len(found.modules)} matrices matched"
    for prefix, side in ((found.prefix_before, "BEFORE"), (found.prefix_after, "AFTER")):
        text += f", without the prefix '{prefix}' of {side}" if prefix else ""
    text += f"; {equal} of them equal" if equal else ""
    text += f"; {n_only[0]} only before, {n_only[1]} only after, {len(found.reshaped)} of other shape."
    return [text]


def _moved(found: Comparison) -> list[str]:
    if found.relative_change is None:
        return []
    cosine = "" if found.cosine is None else f", cosine {found.cosine:.4f}"
    return [f"All matched weights together moved by {found.relative_change:.1%} of their norm{cosine}."]


def _alphas(found: Comparison) -> list[str]:
    inside = [r for r in found.roles if r.family in ("attention", "mlp") and r.abs_alpha is not None]
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


def _statuses(found: Comparison) -> list[str]:
    changed = [m for m in found.modules if m.before.status != m.after.status]
    if not changed:
        return []
    names = listed(f"{m.name} ({m.before.status} > {m.after.status})" for m in changed)
    return [f"Another status after: {names}."]


def _balance(found: Comparison) -> list[str]:
    b = found.balance
    if b is None:
        return []
    return [
        f"Balance of square_alpha over {b.n} attention and MLP matrices: standard deviation {b.sd_before:.3f} > "
        f"{b.sd_after:.3f}, range {b.range_before:.3f} > {b.range_after:.3f}."
    ]
