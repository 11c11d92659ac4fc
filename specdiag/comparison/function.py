"""Rows of what the weights compute on both sides: heads paired by their index, and once more by size alone.

The order of heads is a freedom of the form: a model with its heads renumbered computes the same, and pairs by index are
then of different heads. Sorted by size they do not depend on that order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import log
from statistics import fmean, median

from specdiag.comparison.changes import make_change
from specdiag.comparison.records import FunctionChange, ModuleChange
from specdiag.records import FUNCTION_ROLES, ROLES, ModuleRecord

Identity = tuple[object, ...]

_EXPERT = re.compile(r"expert=([0-9]+)|\bexperts?\.([0-9]{1,9})\b")
_ORDER = (*FUNCTION_ROLES, *ROLES)
_EXACT = 1e-6
"""Relative change of a largest singular value up to which two heads are called the same."""


def function_changes(
    a: Sequence[ModuleRecord], b: Sequence[ModuleRecord], metrics: Sequence[str]
) -> tuple[ModuleChange, ...]:
    """Pair rows of the function by component, layer, role, head and expert, and compute their changes.

    Args:
        a: rows of the function before.
        b: rows of the function after.
        metrics: those that mean the same in both reports.
    """
    one_piece = any(len({row.component for row in side}) < 2 for side in (a, b))
    after = _by_identity(b, one_piece=one_piece)
    return tuple(
        make_change(row.key, row, other, metrics, None)
        for identity, row in _by_identity(a, one_piece=one_piece).items()
        if (other := after.get(identity)) is not None and (row.rows, row.cols) == (other.rows, other.cols)
    )


def function_roles(changes: Sequence[ModuleChange]) -> tuple[FunctionChange, ...]:
    """Average the changes of each role, with heads paired by index and sorted by size.

    Args:
        changes: of all matched rows of the function.
    """
    groups: dict[str, list[ModuleChange]] = defaultdict(list)
    for change in changes:
        groups[change.role].append(change)
    return tuple(_role(groups[role]) for role in _ORDER if role in groups)


def sentences(roles: Sequence[FunctionChange], n_before: int, n_after: int) -> Iterator[str]:
    """Say what was paired, and where heads may have been renumbered.

    Args:
        roles: of the comparison.
        n_before: rows of the function before.
        n_after: rows of the function after.
    """
    if not n_before and not n_after:
        return
    if not n_before or not n_after:
        side = "BEFORE" if not n_before else "AFTER"
        yield f"{side} has no rows of the function: analyze it with function=True to compare what the weights compute."
        return
    n = sum(role.n for role in roles)
    if n < max(n_before, n_after):
        yield f"{n} rows of the function are on both sides; BEFORE has {n_before}, AFTER {n_after}."
    heads = [role for role in roles if role.role in ("qk", "ov") and role.sigma is not None]
    if heads:
        yield "Heads are paired by index. Where they may have been renumbered, read 'sorted' instead."
    for role in heads:
        if role.sigma is not None and role.sigma_sorted is not None and role.sigma > max(2 * role.sigma_sorted, _EXACT):
            yield (
                f"The heads of {role.role} look renumbered: largest singular values differ by {role.sigma:.2g} "
                f"(median |ln|) by index, and by {role.sigma_sorted:.2g} sorted in each layer."
            )


def _by_identity(rows: Sequence[ModuleRecord], *, one_piece: bool) -> dict[Identity, ModuleRecord]:
    """List rows by what they are, without those that are not alone in it."""
    found: dict[Identity, list[ModuleRecord]] = defaultdict(list)
    for row in rows:
        expert = _EXPERT.search(row.key)
        number = None if expert is None else expert[1] or expert[2]
        piece = None if one_piece else row.component
        found[piece, row.layer, row.role, row.head, row.cross_attention, number, "shared" in row.key].append(row)
    return {identity: same[0] for identity, same in found.items() if len(same) == 1}


def _role(changes: Sequence[ModuleChange]) -> FunctionChange:
    def mean(metric: str) -> float | None:
        values = [change.change[metric] for change in changes if metric in change.change]
        return fmean(values) if values else None

    layers: dict[Identity, list[tuple[float, float]]] = defaultdict(list)
    for change in changes:
        before, after = change.before.spectral_norm, change.after.spectral_norm
        if before and after:
            place = (change.component, change.layer, change.before.cross_attention)
            layers[place].append((log(before), log(after)))
    by_index = [abs(x - y) for pairs in layers.values() for x, y in pairs]
    by_size = [
        abs(x - y)
        for pairs in layers.values()
        for x, y in zip(*(sorted(side) for side in zip(*pairs, strict=True)), strict=True)
    ]
    return FunctionChange(
        role=changes[0].role,
        family=changes[0].family,
        n=len(changes),
        alpha=mean("alpha"),
        rho=mean("rho"),
        stable_rank=mean("stable_rank"),
        sigma=median(by_index) if by_index else None,
        sigma_sorted=median(by_size) if by_size else None,
    )
