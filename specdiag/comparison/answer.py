"""The answer of a comparison: how far the model moved, where most, and in what way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import pi
from statistics import fmean, median

from specdiag.comparison.records import Comparison, ModuleChange
from specdiag.text.counts import percent

_RANK = 8
_LOW_RANK = 0.999
"""Share of a change within rank 8 from which it is that of an adapter of low rank, but for rounding."""
_APART = 3.0
"""Ratio to the median change from which a matrix is named by itself."""
_NAMED = 3


def headline(comparison: Comparison) -> str:
    """Say in one sentence how far the model moved.

    Args:
        comparison: as `compare` returned it.
    """
    n, changed = len(comparison.modules), sum(m.unchanged is False for m in comparison.modules)
    if not n:
        return "No matrix was compared: none has one of its name and shape on the other side."
    if any(m.unchanged is None for m in comparison.modules):
        return f"Whether {n} matrices changed is not known to the bit: a side has no digests of its values."
    if not changed:
        return f"No matrix changed: {n} of {n} are equal, bit for bit. Norms and biases were not compared."
    moved = f"{changed} of {n} matrices changed"
    if comparison.relative_change is not None:
        return f"{moved}. All weights together moved by {percent(comparison.relative_change, 1)} of their norm."
    return f"{moved}. Reports do not say by how much the weights moved."


def facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Give subject and sentence of what else one asks first.

    Args:
        comparison: as `compare` returned it.
    """
    moved = [m for m in comparison.modules if m.delta is not None and m.delta.relative_change]
    if moved:
        yield "Changed most", _most(moved)
    energies = [(m, e) for m in moved if m.delta is not None and (e := m.delta.energy(_RANK)) is not None]
    if energies:
        yield "Update", _rank(energies)
    if any(m.unchanged is not True for m in comparison.modules) and (tails := _tails(comparison)):
        yield "Tails", tails
    statuses = [m for m in comparison.modules if m.before.status != m.after.status]
    if statuses:
        yield (
            "Status",
            f"another one after in {len(statuses)} of {len(comparison.modules)}, such as {_status(statuses[0])}",
        )
    if equal := sum(m.unchanged is True for m in comparison.modules):
        yield "Unchanged", f"{equal} {'matrix' if equal == 1 else 'matrices'}"
    apart = {"only before": comparison.only_before, "only after": comparison.only_after}
    n_apart = [f"{n} {side}" for side, left in apart.items() if (n := sum(u.role is not None for u in left))]
    if comparison.reshaped:
        n_apart.append(f"{len(comparison.reshaped)} of another shape")
    if n_apart:
        yield "Not compared", f"matrices: {', '.join(n_apart)}"


def _most(moved: list[ModuleChange]) -> str:
    changes = {m.name: m.delta.relative_change or 0.0 for m in moved if m.delta is not None}
    middle = median(changes.values())
    ranked = sorted(changes, key=lambda name: changes[name], reverse=True)
    apart = [name for name in ranked if changes[name] > _APART * middle][:_NAMED] or ranked[:1]
    rest = [changes[name] for name in ranked if name not in apart]
    named = ", ".join(f"{name} ({percent(changes[name], 1)})" for name in apart)
    return f"{named}; the others {percent(min(rest), 1)} to {percent(max(rest), 1)}" if rest else named


def _rank(energies: Sequence[tuple[ModuleChange, float]]) -> str:
    if min(energy for _, energy in energies) >= _LOW_RANK:
        return "of rank 8 or less in every matrix, as merging an adapter leaves it"
    share, random = fmean(energy for _, energy in energies), fmean(_random_share(m) for m, _ in energies)
    how = (
        "few directions hold most of it"
        if share > 0.5
        else "spread over many directions, as a random change is"
        if share < 2 * random
        else "more concentrated than a random change"
    )
    held = f"{percent(share)} of a matrix's change lies within rank 8 (mean)"
    return f"{how}: {held}, of a random change at most {percent(random)}"


def _random_share(m: ModuleChange) -> float:
    """Bound the share of a random matrix of this shape within rank 8: so many times its largest eigenvalue (MP law)."""
    n, k = sorted((m.before.rows, m.before.cols))
    return min(1.0, _RANK * (1 + (n / k) ** 0.5) ** 2 / n)


def _tails(comparison: Comparison) -> str | None:
    roles = [r for r in comparison.roles if r.family in ("attention", "mlp") and r.abs_alpha is not None]
    if not roles or any(r.alpha_sd is None for r in roles):
        return None
    n = sum(r.n for r in roles)
    moved = sum((r.abs_alpha or 0.0) * r.n for r in roles) / n
    redrawn = 2 / pi**0.5 * sum((r.alpha_sd or 0.0) * r.n for r in roles) / n
    how = "less than" if moved < redrawn else "more than"
    verdict = "kept" if moved < redrawn else "moved"
    return f"{verdict}: alpha changed by {moved:.4f} in the mean, {how} between two random matrices ({redrawn:.4f})"


def _status(m: ModuleChange) -> str:
    return f"{m.name} ({m.before.status} > {m.after.status})"
