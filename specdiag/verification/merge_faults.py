"""Names for what is wrong with a merged weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.verification.clues import Applied, Clues, Fault
from specdiag.verification.copies import compare_copy, narrower
from specdiag.verification.copy_faults import copy_fault
from specdiag.verification.expected import merged_by, product
from specdiag.verification.merges import Merge, compare_merge
from specdiag.verification.values import Values, Wide

_NEAR = 0.03
_PRESENT = 0.1
_ABSENT = 0.3
_PART = 0.2


def merge_fault(merge: Merge, clues: Clues, applied: Applied) -> Fault:
    """Name what is wrong with a merged weight.

    Args:
        merge: as it was compared.
        clues: what may explain it, `before` being W + D.
        applied: the update that it should have got.

    Returns:
        The name, and a sentence with the numbers.

    Raises:
        SourceError: another tensor, which is read for this, cannot be.
    """
    return next(_faults(merge, clues, applied))


def _faults(merge: Merge, clues: Clues, applied: Applied) -> Iterator[Fault]:
    n, after = clues.after.raw.size, clues.after
    if merge.n_lost:
        yield "not finite", f"{merge.n_lost} of {n} values are not finite"
    copy = compare_copy(applied.base, after)
    if copy.is_right and (after.rounding is None or abs(merge.strength or 0.0) < _ABSENT):
        yield "not applied", f"it holds the base model's values, and the update has {merge.size:.2g} of their norm"
    yield from _without_magnitudes(clues, applied)
    yield from _scaled(merge, clues, applied)
    yield from _cast(clues, applied)
    yield from _of_another(clues, applied)
    yield from _in_part(merge, clues, applied)
    if merge.strength is not None and merge.unexplained is not None and _is_present(merge, n):
        yield (
            "other base",
            f"the update is there (strength {merge.strength:.3f}) beside a change that is not its "
            f"({merge.unexplained:.2f} of all): the base model was another one, or quantised",
        )
    expected = compare_copy(clues.before, after)
    name, detail = copy_fault(expected, replace(clues, updates=lambda: ()))
    if name == "changed" and merge.strength is not None:
        yield (
            "other update",
            f"the change has {merge.change:.2g} times the size of the update, and is another one "
            f"(strength {merge.strength:.2f})",
        )
    yield name, detail


def _is_present(merge: Merge, n: int) -> bool:
    """Tell whether the change holds the update beside something else that has nothing to do with it."""
    assert merge.strength is not None
    assert merge.unexplained is not None
    error = merge.unexplained * merge.change / n**0.5
    return error < _PRESENT and abs(merge.strength - 1) <= _PRESENT + 3 * error


def _without_magnitudes(clues: Clues, applied: Applied) -> Iterator[Fault]:
    if applied.update.magnitude is None:
        return
    plain = replace(applied.update, magnitude=None)
    found = compare_merge(applied.base, applied.lay(merged_by(plain, applied.tensor)), clues.after)
    if found.is_right:
        yield "magnitudes left out", "the product was added as a plain LoRA, without DoRA's magnitudes"
    twice = compare_merge(applied.base, applied.lay(merged_by(applied.update, applied.tensor, 2)), clues.after)
    if twice.is_right:
        yield "applied twice", "the update was applied to weights that had it already"
    factor = _factor_below_magnitudes(clues, applied)
    if factor is not None and abs(factor - 1) > _NEAR:
        other = replace(applied.update, known_scale=applied.update.scale() * factor)
        found = compare_merge(applied.base, applied.lay(merged_by(other, applied.tensor)), clues.after)
        if found.is_scaled and abs((found.strength or 0.0) - 1) <= _NEAR:
            yield "wrong scale", _scales(applied, factor)


def _factor_below_magnitudes(clues: Clues, applied: Applied) -> float | None:
    """Estimate the scale used over the right one: each output's weights are a w + b s p, whatever their norm."""
    shape = clues.after.raw.shape[1:]
    delta = applied.lay(product(applied.update, applied.tensor))
    w, p, t = (values.wide().reshape(shape) for values in (applied.base, delta, clues.after))
    axis = 0 if applied.update.transposed else 1
    ww, pp, wp, tw, tp = ((a * b).sum(axis) for a, b in ((w, w), (p, p), (w, p), (t, w), (t, p)))
    of_w, of_p = tw * pp - tp * wp, tp * ww - tw * wp
    told = of_w > 0
    return float(np.median(of_p[told] / of_w[told])) if told.any() else None


def _scaled(merge: Merge, clues: Clues, applied: Applied) -> Iterator[Fault]:
    s, kept = merge.strength, merge.kept or 1.0
    if s is None or not merge.is_scaled:
        return
    factor = s / kept
    if abs(factor - 1) <= _NEAR:
        return
    if abs(factor - 2) <= _NEAR and applied.update.magnitude is None:
        twice, doubled = _twice_or_doubled(clues, applied)
        margin = _NEAR * clues.after.raw.size
        if doubled > twice + margin:
            yield "wrong scale", f"strength {s:.3f}: {_scales(applied, 2.0)}"
        certain = "" if twice > doubled + margin else ", or once with twice its scale: this storage does not tell"
        yield "applied twice", f"strength {s:.3f}: the update was applied to weights that had it already{certain}"
    if abs(factor + 1) <= _NEAR:
        yield "subtracted", f"strength {s:.3f}: the update was taken off instead of added"
    if abs(factor) > _NEAR:
        yield "wrong scale", f"strength {s:.3f}: {_scales(applied, factor)}"


def _twice_or_doubled(clues: Clues, applied: Applied) -> tuple[int, int]:
    """Count the values that casting after each of two steps reproduces, and those of one step of twice the size."""
    after, float64 = clues.after, np.dtype(np.float64)
    delta = applied.lay(product(applied.update, applied.tensor)).wide()
    base = applied.base.wide()

    def cast(values: Wide) -> Wide:
        return after.kind.widen(after.kind.narrow(values), float64)

    t = after.wide()
    return int((cast(cast(base + delta) + delta) == t).sum()), int((cast(base + 2 * delta) == t).sum())


def _scales(applied: Applied, factor: float) -> str:
    """Say which scale was used, and which slip gives it."""
    scale, rank = applied.update.scale(), applied.update.rank
    used = scale * factor
    slips = (
        (1.0, "the product without a scale"),
        (scale * rank, "alpha, not divided by the rank"),
        (scale * rank**0.5, "alpha over the root of the rank, as rsLoRA has it, instead of over the rank"),
        (scale / rank**0.5, "alpha over the rank instead of over its root"),
    )
    hint = next((f", {words}" for value, words in slips if rank > 1 and abs(used / value - 1) <= _NEAR), "")
    return f"the scale was about {used:.3g} instead of {scale:.3g}{hint}"


def _cast(clues: Clues, applied: Applied) -> Iterator[Fault]:
    """Look for the precision of a narrower type in a wider one."""
    name = None if clues.after.rounding else narrower(clues.after)
    if name is None or FLOAT_TYPES[name].eps <= applied.base.kind.eps:
        return
    kind = FLOAT_TYPES[name]
    cast = Values(kind.narrow(clues.after.wide()).reshape(clues.after.raw.shape), kind)
    found = compare_merge(applied.base, clues.before, cast)
    if found.is_right:
        yield "other dtype", f"it was merged in {name}: its {clues.after.kind.name} values have no more precision"


def _of_another(clues: Clues, applied: Applied) -> Iterator[Fault]:
    """Look for the update of another module in the change."""
    for name, values in clues.updates():
        delta = values()
        asked = Values((applied.base.wide() + delta.wide()).reshape(applied.base.raw.shape), FLOAT_TYPES["F64"])
        found = compare_merge(applied.base, asked, clues.after)
        if found.strength and found.is_scaled and abs(found.strength) > _PRESENT:
            yield "wrong module", f"the update of {name} was applied here, at strength {found.strength:.3g}"


def _in_part(merge: Merge, clues: Clues, applied: Applied) -> Iterator[Fault]:
    """Tell whether the change lies within the directions of the update."""
    n_slices, rows, cols = clues.after.raw.shape
    if n_slices != 1 or merge.strength is None or abs(merge.strength) < 0.05 or merge.rounding is None:
        return
    delta = applied.lay(product(applied.update, applied.tensor)).wide().reshape(rows, cols)
    change = (clues.after.wide() - applied.base.wide()).reshape(rows, cols)
    rank = applied.update.rank
    if 2 * rank >= min(rows, cols):
        return
    left, right = _directions(delta, rank), _directions(delta.T, rank)
    inside = left @ ((left.T @ change) @ right) @ right.T
    size = float(np.linalg.norm(change))
    rest = float(np.linalg.norm(change - inside)) / size if size else 1.0
    is_inside = rest <= max(_PART, 1.5 * merge.rounding / max(merge.change, 1e-30))
    if is_inside and rest < 0.5 * (merge.unexplained or 0.0):
        yield (
            "part of the update",
            f"strength {merge.strength:.3f}: the change lies within the update's directions, and is not all of it: "
            "ranks were left out, or the factors are of another step",
        )


def _directions(delta: Wide, rank: int) -> Wide:
    """Find the directions that the columns of a product span."""
    rng = np.random.default_rng(0)
    return np.linalg.qr(delta @ rng.standard_normal((delta.shape[1], rank)))[0]
