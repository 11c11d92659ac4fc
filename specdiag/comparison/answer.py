"""The answer of a comparison: how far the model moved, where most, and in what way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import pi
from statistics import fmean, median

from specdiag.comparison.records import Comparison, ModuleChange
from specdiag.comparison.replaced import all_replaced, is_rounding, replaced, replacements, scaled, storage
from specdiag.text.counts import counted, percent
from specdiag.text.names import listed
from specdiag.text.places import places

_RANK = 8
_LOW_RANK = 0.999
"""Share of a change within rank 8 from which it is that of an adapter of low rank, but for rounding."""
_APART = 3.0
"""Ratio to the median change from which a matrix is named by itself."""
_NAMED = 3
_LAYERS = 3
"""Fewest layers whose changes are compared."""
_CLEARLY = 1.25
"""Ratio of the changes of two layers from which both are named."""
_DAMAGE = {
    "nonfinite": "NaN or infinite values in",
    "failed": "no numbers for",
    "zero": "only zeros in",
}
"""Statuses of a matrix that has nothing to compare, in words."""


def headline(comparison: Comparison) -> str:
    """Say in one line what is damaged or lacking, and how far the rest moved.

    Args:
        comparison: as `compare` returned it.
    """
    faults = [*_damaged(comparison), *_lacking(comparison), *_reshaped(comparison)]
    return " ".join([*faults, _how_far(comparison, is_rest=bool(faults))])


def _damaged(comparison: Comparison) -> Iterator[str]:
    """Name the matrices that have nothing to compare on a side."""
    n = len(comparison.modules)
    for side in ("BEFORE", "AFTER"):
        for kind, what in _DAMAGE.items():
            if found := [m.name for m in comparison.modules if (side, kind) in _faults(m)]:
                which = f"all {n} matrices" if len(found) == n > 1 else listed(found, _NAMED)
                yield f"{side} is damaged: {what} {which}."


def _faults(m: ModuleChange) -> set[tuple[str, str]]:
    """Give the sides of a matrix that have no numbers. Zeros are a fault where other values became them."""
    sides = (("BEFORE", m.before.status), ("AFTER", m.after.status))
    faults = {(side, status) for side, status in sides if status in ("nonfinite", "failed")}
    if m.after.status == "zero" != m.before.status:
        faults.add(("AFTER", "zero"))
    return faults


def _lacking(comparison: Comparison) -> Iterator[str]:
    """Count the matrices that one side lacks."""
    n_compared = len(comparison.modules) + len(comparison.reshaped)
    for side, only in (("AFTER", comparison.only_before), ("BEFORE", comparison.only_after)):
        n = sum(u.role is not None for u in only)
        if n and n_compared:
            yield f"{side} lacks {n} of {n + n_compared} matrices."


def _reshaped(comparison: Comparison) -> Iterator[str]:
    """Name the matrices that have another shape."""
    if comparison.modules and (found := comparison.reshaped):
        shapes = (f"{r.name} ({_shape(r.shape_before)}, now {_shape(r.shape_after)})" for r in found)
        verb = "has another shape" if len(found) == 1 else "have other shapes"
        yield f"{counted(len(found), 'tensor')} {verb}: {listed(shapes, _NAMED)}."


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _how_far(comparison: Comparison, *, is_rest: bool) -> str:
    """Say how far the matrices that have numbers moved."""
    whole = [m for m in comparison.modules if not _faults(m)]
    n, changed = len(whole), sum(m.unchanged is False for m in whole)
    if not comparison.modules:
        return "No matrix was compared: none has one of its name and shape on the other side."
    if not whole:
        return "No matrix can be compared."
    if any(m.unchanged is None for m in whole):
        number = counted(n, "matrix", "matrices")
        return f"Whether {number} changed is not known to the bit: a side has no digests of its values."
    if not changed and is_rest:
        return f"The other {n} are equal, bit for bit. Norms and biases were not compared."
    if not changed:
        return f"No matrix changed: {n} of {n} are equal, bit for bit. Norms and biases were not compared."
    if is_rest:
        moved = (
            f"All other {n} matrices changed" if changed == n > 1 else f"{changed} of the other {n} matrices changed"
        )
    else:
        moved = f"{changed} of {n} matrices changed" if n > 1 else "The one matrix changed"
    if comparison.relative_change == 0:
        return (
            "No value changed. "
            + (f"{changed} of {n} matrices are" if n > 1 else "The matrix is")
            + (" stored in another type.")
        )
    n_replaced = sum(not _faults(m) for m in replaced(comparison))
    if n_replaced == len(comparison.modules) > 1:
        return all_replaced(comparison)
    if is_rounding(m for m in whole if m.unchanged is False):
        moved += ", none by more than the storage type rounds"
    if n_replaced:
        moved += ": replaced, not tuned" if n_replaced == changed else f", {n_replaced} of them replaced, not tuned"
    if comparison.relative_change is not None:
        share = _at_least_seen(comparison.relative_change)
        return f"{moved}. All weights together moved by {share} of their norm."
    return f"{moved}. Reports do not say by how much the weights moved."


def _at_least_seen(share: float) -> str:
    """Write a share that is above zero so that it does not read as nothing."""
    return "less than 0.1 %" if 0 < share < 5e-4 else percent(share, 1)


def facts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Give subject and sentence of what else one asks first.

    Args:
        comparison: as `compare` returned it.
    """
    moved = [m for m in comparison.modules if m.delta is not None and m.delta.relative_change]
    if ways := list(replacements(comparison)):
        yield "Replaced", "; ".join(ways)
    if factors := scaled(comparison):
        yield "Scaled", listed((f"{name} by {factor:.4g}" for name, factor in factors), _NAMED)
    changed = [m for m in comparison.modules if m.unchanged is False]
    if stored := storage(changed):
        yield "Stored", stored
    odd = {m.name for m in replaced(comparison)} | {name for name, _ in scaled(comparison)}
    tuned = [m for m in moved if m.name not in odd and not _faults(m)]
    if moved:
        yield "Changed most", _most(moved)
        if not is_rounding(changed) and (depth := _depth(tuned)):
            yield "By layer", depth
    energies = [(m, e) for m in tuned if m.delta is not None and (e := m.delta.energy(_RANK)) is not None]
    if energies and not is_rounding(changed):
        yield "Update", _rank(energies)
    if any(m.unchanged is not True for m in comparison.modules) and (tails := _tails(comparison)):
        yield "Tails", tails
    if revived := [m.name for m in comparison.modules if m.before.status == "zero" != m.after.status]:
        yield "Was zero", f"{listed(revived, _NAMED)}: only zeros before, values after"
    statuses = [m for m in comparison.modules if m.before.status != m.after.status]
    if statuses:
        yield (
            "Status",
            f"another one after in {len(statuses)} of {len(comparison.modules)}, such as {_status(statuses[0])}",
        )
    if equal := {m.name for m in comparison.modules if m.unchanged is True}:
        where = _where(equal, comparison)
        yield "Unchanged", counted(len(equal), "matrix", "matrices") + (f": {where}" if where else "")
    apart = {"only before": comparison.only_before, "only after": comparison.only_after}
    n_apart = [f"{n} {side}" for side, left in apart.items() if (n := sum(u.role is not None for u in left))]
    if comparison.reshaped:
        n_apart.append(f"{len(comparison.reshaped)} of another shape")
    if n_apart:
        yield "Not compared", f"matrices: {', '.join(n_apart)}"


def _where(names: set[str], comparison: Comparison) -> str:
    one_stack = len({m.component for m in comparison.modules if m.layer is not None}) == 1
    return places(names, [(m.name, m.layer, m.role) for m in comparison.modules]) if one_stack else ""


def _most(moved: list[ModuleChange]) -> str:
    changes = {m.name: m.delta.relative_change or 0.0 for m in moved if m.delta is not None}
    middle = median(changes.values())
    ranked = sorted(changes, key=lambda name: changes[name], reverse=True)
    if len(changes) > 1 and _at_least_seen(changes[ranked[0]]) == _at_least_seen(0.0001):
        return f"none by 0.1 % or more; furthest {ranked[0]}"
    if len(changes) > 1 and _at_least_seen(changes[ranked[0]]) == _at_least_seen(changes[ranked[-1]]):
        return f"none: all by {_at_least_seen(middle)}"
    apart = [name for name in ranked if changes[name] > _APART * middle][:_NAMED] or ranked[:1]
    rest = [changes[name] for name in ranked if name not in apart]
    named = ", ".join(f"{name} ({_at_least_seen(changes[name])})" for name in apart)
    if not rest:
        return named
    low, high = _at_least_seen(min(rest)), _at_least_seen(max(rest))
    return f"{named}; the others {low if low == high else f'{low} to {high}'}"


def _depth(moved: Sequence[ModuleChange]) -> str | None:
    """Name the layers that moved most and least, where layers differ clearly."""
    layers: dict[int, list[float]] = defaultdict(list)
    components = {m.component for m in moved if m.layer is not None}
    for m in moved:
        if m.layer is not None and m.delta is not None:
            layers[m.layer].append(m.delta.relative_change or 0.0)
    middles = {layer: median(values) for layer, values in layers.items()}
    if len(middles) < _LAYERS or len(components) > 1:
        return None
    least, most = min(middles, key=middles.__getitem__), max(middles, key=middles.__getitem__)
    if middles[most] < _CLEARLY * middles[least]:
        return None
    return f"{most} most ({_at_least_seen(middles[most])}), {least} least ({_at_least_seen(middles[least])}); medians"


def _rank(energies: Sequence[tuple[ModuleChange, float]]) -> str:
    if min(energy for _, energy in energies) >= _LOW_RANK:
        return "of rank 8 or less in every matrix, as merging an adapter leaves it"
    share, random = fmean(energy for _, energy in energies), fmean(_random_share(m) for m, _ in energies)
    how = (
        "few directions hold most of it"
        if share > 0.5
        else "spread over many directions, as a random change is"
        if share <= random or percent(share) == percent(random)
        else "spread over many directions, fewer than a random change"
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
    return f"{m.name} ({m.before.status} → {m.after.status})"
