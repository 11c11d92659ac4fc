"""Copies of a reference model that are not equal to it in every bit: damaged, rounded, or tuned a little."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import isclose

from specdiag.architecture.classes import model_class
from specdiag.records import ModuleRecord
from specdiag.reference.ranges import Range, ReferenceRanges, is_comparable

_NEAR = 1e-3
"""Relative difference of square_alpha up to which numbers are of one model. A choice: bfloat16 moves it less."""
_ROLES = 3
"""Roles that must agree at least, and they must be more than half. A choice."""


def copied(records: Iterable[ModuleRecord], architecture: str | None, reference: ReferenceRanges) -> int | None:
    """Find the source that a model is a copy of: least and largest square_alpha agree in most of its roles.

    Args:
        records: all of the model.
        architecture: of the model, as its report has it.
        reference: the ranges.

    Returns:
        The place among the sources; None where no source has the numbers of this model.
    """
    values: dict[tuple[object, ...], list[float]] = defaultdict(list)
    ranges: dict[tuple[object, ...], Range] = {}
    for r in records:
        kind = model_class(architecture, r.component)
        found = reference.find(kind, r, "square_alpha") if kind is not None and is_comparable(r) else None
        if found is not None and r.square_alpha is not None:
            ranges[found.place] = found
            values[found.place].append(r.square_alpha)
    agreeing = Counter[int]()
    for place, held in values.items():
        found = ranges[place]
        for model, least, most in zip(found.models, found.least, found.most, strict=True):
            if isclose(min(held), least, rel_tol=_NEAR) and isclose(max(held), most, rel_tol=_NEAR):
                agreeing[model] += 1
    if not agreeing:
        return None
    model, n = agreeing.most_common(1)[0]
    return model if n >= _ROLES and 2 * n > len(values) else None
