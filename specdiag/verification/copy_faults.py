"""Names for what is wrong with a tensor that should be a copy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.verification.clues import Clues, Fault
from specdiag.verification.content import permutation
from specdiag.verification.copies import Copy, compare_copy, narrower
from specdiag.verification.layouts import rotary_orders
from specdiag.verification.merges import compare_merge
from specdiag.verification.values import Values

_FEW = 1e-3
_KIN, _STRANGE = 0.9, 0.3
"""Cosines above which values are the same tensor's, and below which they are another's."""
_GROUP, _LEVELS = 32, 18


def copy_fault(copy: Copy, clues: Clues) -> Fault:
    """Name what is wrong with a tensor that is no copy.

    Args:
        copy: as it was compared.
        clues: what may explain it.

    Returns:
        The name, and a sentence with the numbers.

    Raises:
        SourceError: another tensor, which is read for this, cannot be.
    """
    return next(_faults(copy, clues))


def _faults(copy: Copy, clues: Clues) -> Iterator[Fault]:
    n = clues.after.raw.size
    if copy.n_lost:
        yield "not finite", f"{copy.n_lost} of {n} values are not finite"
    kind = None if clues.after.rounding else narrower(clues.after)
    if kind is not None and FLOAT_TYPES[kind].eps > clues.before.kind.eps:
        narrow = FLOAT_TYPES[kind]
        cast = Values(narrow.narrow(clues.after.wide()).reshape(clues.after.raw.shape), narrow)
        if compare_copy(clues.before, cast).is_right:
            yield "other dtype", f"its {clues.after.kind.name} values have the precision of {kind}"
    if copy.n_different is not None and copy.n_different <= max(1, _FEW * n) and clues.after.rounding is None and n > 1:
        yield "few values differ", f"{copy.n_different} of {n} values differ"
    yield from _rescaled(copy, clues)
    yield from _moved(clues)
    yield from _updated(clues)
    yield from _coarse(copy, clues)
    if copy.cosine is not None and abs(copy.cosine) < _KIN:
        yield from _of_another(clues)
    if copy.cosine is None or abs(copy.cosine) < _STRANGE:
        cosine = "" if copy.cosine is None else f": cosine {copy.cosine:.2f}"
        yield "other values", f"its values have nothing to do with the original's{cosine}"
    yield "changed", f"it differs by {_share(copy.residual)} of its norm, rounding explains {_share(copy.rounding)}"


def _rescaled(copy: Copy, clues: Clues) -> Iterator[Fault]:
    if copy.cosine is None or abs(copy.cosine) < _KIN or abs(copy.slope - 1) < 1e-6 or clues.after.raw.size < 2:
        return
    rest = max(1 - copy.cosine**2, 0.0) ** 0.5
    if rest <= 1.5 * copy.rounding * copy.cosine / copy.slope + 1e-7 and abs(copy.slope - 1) > 2 * rest:
        yield "scaled", f"it is {copy.slope:.4g} times the original"


def _moved(clues: Clues) -> Iterator[Fault]:
    """Try the orders in which the same values may lie."""
    n_slices, rows, cols = clues.before.raw.shape
    if min(rows, cols) < 2:
        found = permutation(clues.before, clues.after) if n_slices == 1 else None
        if found is not None:
            yield "rows permuted", "it holds the same values in another order"
        return
    if rows == cols:
        turned = clues.before.like(np.ascontiguousarray(clues.before.raw.swapaxes(1, 2)))
        if compare_copy(turned, clues.after).is_right:
            yield "transposed", "it is the transpose of the original"
    for name, apply in rotary_orders(rows, clues.head_sizes):
        if compare_copy(apply(clues.before), clues.after).is_right:
            yield "rotary order", f"its rows lie in the other order of rotary heads ({name})"
    if clues.after.rounding is None:
        found = permutation(clues.before, clues.after)
        if found is not None:
            word, order = found
            n_moved = int((order != np.arange(order.size)).sum())
            lines = "rows permuted" if word == "rows" else "columns permuted"
            yield lines, f"{n_moved} of {order.size} {word} lie in another place"


def _updated(clues: Clues) -> Iterator[Fault]:
    """Look for the update of another module in the change."""
    for name, product in clues.updates():
        delta = product()
        asked = Values((clues.before.wide() + delta.wide()).reshape(clues.before.raw.shape), FLOAT_TYPES["F64"])
        found = compare_merge(clues.before, asked, clues.after)
        if found.strength and found.is_scaled and abs(found.strength) > 0.05:
            yield "wrong module", f"the update of {name} was applied here, at strength {found.strength:.3g}"


def _coarse(copy: Copy, clues: Clues) -> Iterator[Fault]:
    if copy.cosine is None or copy.cosine < _KIN or min(clues.after.raw.shape[1:]) < 2:
        return
    if clues.after.rounding is not None:
        if copy.residual > copy.rounding:
            yield (
                "coarser than its storage",
                f"its error is {copy.residual / copy.rounding:.1f} times that of its type: {_share(copy.residual)} of "
                f"its norm, {_share(copy.rounding)} expected",
            )
        return
    if clues.before.rounding is None and (levels := _levels(clues.after)) <= _LEVELS < _levels(clues.before):
        yield (
            "coarser than its storage",
            f"{_GROUP} neighbours take {levels:.0f} values on average: it was decoded from codes of few bits",
        )


def _levels(values: Values) -> float:
    """Count the distinct values among neighbours, in the mean over some groups."""
    flat = values.raw.reshape(-1)
    groups = flat[: flat.size // _GROUP * _GROUP].reshape(-1, _GROUP)[:: max(1, flat.size // _GROUP // 256)]
    return float(np.mean([np.unique(group).size for group in groups])) if groups.size else float(_GROUP)


def _of_another(clues: Clues) -> Iterator[Fault]:
    for name, values in clues.others():
        if compare_copy(values(), clues.after).is_right:
            yield "values of another tensor", f"it holds the values of {name}"


def _share(value: float) -> str:
    return f"{value:.2g}"
