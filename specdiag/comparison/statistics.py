"""Means by role, balance and totals, from the changes of single matrices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from specdiag.analysis.summary import balance_score
from specdiag.comparison.records import Balance, Delta, ModuleChange, RoleChange
from specdiag.records import FAMILIES, ROLES, stored_role
from specdiag.spectra.tail_rules import alpha_sd


def role_changes(changes: Sequence[ModuleChange]) -> tuple[RoleChange, ...]:
    """Average the changes of the matrices of each role.

    Args:
        changes: of all matched matrices.

    Returns:
        One entry a role, in the order of every table.
    """
    groups: dict[tuple[str, str], list[ModuleChange]] = defaultdict(list)
    for change in changes:
        groups[change.family, change.role].append(change)
    order = sorted(groups, key=lambda g: (FAMILIES.index(g[0]), ROLES.index(g[1])))  # pyright: ignore[reportArgumentType]
    return tuple(_role(groups[g]) for g in order)


def balance(changes: Sequence[ModuleChange]) -> Balance | None:
    """Compute the balance score of both sides over the attention and MLP matrices that both have.

    Args:
        changes: of all matched matrices.

    Returns:
        None where fewer than two matrices have square_alpha on both sides.
    """
    inside = [c for c in changes if c.family in ("attention", "mlp")]
    both = [
        (c.before.square_alpha, c.after.square_alpha)
        for c in inside
        if c.before.square_alpha is not None and c.after.square_alpha is not None
    ]
    if len(both) < 2:
        return None
    (sd_before, range_before), (sd_after, range_after) = (balance_score(alphas) for alphas in zip(*both, strict=True))
    return Balance(
        n=len(both), sd_before=sd_before, sd_after=sd_after, range_before=range_before, range_after=range_after
    )


def totals(changes: Iterable[ModuleChange]) -> tuple[float | None, float | None]:
    """Compute the relative change and the cosine of all compared weights as one vector.

    Args:
        changes: of all matched matrices.

    Returns:
        Both, or None for each where weights were not compared. The cosine is None also where all weights after are
            zero.
    """
    before = after = moved = 0.0
    for change in changes:
        delta, a, b = change.delta, change.before.frobenius_norm, change.after.frobenius_norm
        if delta is not None and delta.frobenius_norm is not None and a is not None and b is not None:
            before, after, moved = before + a**2, after + b**2, moved + delta.frobenius_norm**2
    if before == 0:
        return None, None
    cosine = (before + after - moved) / (2 * (before * after) ** 0.5) if after else None
    return (moved / before) ** 0.5, cosine


def _role(group: list[ModuleChange]) -> RoleChange:
    def mean(value: Callable[[ModuleChange], float | None]) -> float | None:
        values = [v for change in group if (v := value(change)) is not None]
        return fmean(values) if values else None

    def of_change(metric: str, how: Callable[[float], float] = float) -> float | None:
        return mean(lambda c: how(c.change[metric]) if metric in c.change else None)

    def of_delta(value: Callable[[Delta], float | None]) -> float | None:
        return mean(lambda c: None if c.delta is None else value(c.delta))

    return RoleChange(
        family=group[0].family,
        role=stored_role(group[0].role),
        n=len(group),
        n_unchanged=sum(c.unchanged is True for c in group),
        abs_alpha=of_change("alpha", abs),
        alpha=of_change("alpha"),
        alpha_sd=mean(_alpha_sd),
        abs_square_alpha=of_change("square_alpha", abs),
        square_alpha=of_change("square_alpha"),
        stable_rank=of_change("stable_rank"),
        frobenius_norm=mean(lambda c: _ratio(c.before.frobenius_norm, c.after.frobenius_norm)),
        relative_change=of_delta(lambda d: d.relative_change),
        cosine=of_delta(lambda d: d.cosine),
        delta_stable_rank=of_delta(lambda d: d.stable_rank),
        energy_8=of_delta(lambda d: d.energy(8)),
        left_angle=of_delta(lambda d: None if d.subspaces is None else d.subspaces.left_angle),
        right_angle=of_delta(lambda d: None if d.subspaces is None else d.subspaces.right_angle),
    )


def _alpha_sd(change: ModuleChange) -> float | None:
    """Give that of a matrix whose alpha is compared."""
    a = change.before
    return alpha_sd(a.tail, (a.rows, a.cols), a.n_slices) if "alpha" in change.change else None


def _ratio(before: float | None, after: float | None) -> float | None:
    return after / before - 1 if before and after is not None else None
