"""Copies of a reference model that are not equal to it in every bit: damaged, rounded, or tuned a little."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import isclose

from specdiag.architecture.classes import model_class
from specdiag.records import ModuleRecord
from specdiag.reference.ranges import Metric, Range, ReferenceRanges, is_comparable, measured

_NEAR = 1e-3
"""Relative difference up to which numbers are of one model. A choice: bfloat16 moves them less."""
_METRICS: tuple[Metric, ...] = ("square_alpha", "stable_rank/n")
_ENDS = 6
"""Ends of ranges that must agree at least, and a third of all. A choice: without two of its six layers MiniLM keeps 16
of 24, and no two of the shipped models share more than one."""


def copied(records: Iterable[ModuleRecord], architecture: str | None, reference: ReferenceRanges) -> int | None:
    """Find the source that a model is a copy of, or of some of its layers.

    Least and largest square_alpha and stable rank of each role are compared with those of the source: layers that are
    damaged or not there move only the ends that they had.

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
        if kind is None or not is_comparable(r):
            continue
        for metric in _METRICS:
            found, value = reference.find(kind, r, metric), measured(r, metric)
            if found is not None and value is not None:
                ranges[found.place] = found
                values[found.place].append(value)
    agreeing = Counter[int]()
    for place, held in values.items():
        found = ranges[place]
        for value, ends in ((min(held), found.least), (max(held), found.most)):
            near = [m for m, end in zip(found.models, ends, strict=True) if isclose(value, end, rel_tol=_NEAR)]
            agreeing.update(near if len(near) == 1 else ())  # what several sources share tells none of them
    if not agreeing:
        return None
    model, n = agreeing.most_common(1)[0]
    return model if n >= _ENDS and 3 * n >= 2 * len(values) else None
