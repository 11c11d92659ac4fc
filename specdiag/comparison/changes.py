"""A matrix on both sides: the change of its metrics, and of its weights from three norms."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.comparison.records import Delta, ModuleChange, Subspaces
from specdiag.records import ModuleRecord


def make_change(
    name: str, a: ModuleRecord, b: ModuleRecord, metrics: Sequence[str], delta: Delta | None
) -> ModuleChange:
    """Compute the change of one matrix.

    Args:
        name: common to both sides.
        a: its row in A.
        b: its row in B.
        metrics: those that mean the same in both.
        delta: the change of its weights, None where these were not compared.

    Returns:
        The change; a metric is left out where a side lacks its value.
    """
    values = {metric: (getattr(a, metric), getattr(b, metric)) for metric in metrics}
    return ModuleChange(
        name=name,
        role=b.role,
        family=b.family,
        layer=b.layer,
        component=b.component,
        unchanged=unchanged(a, b),
        change={m: float(after - before) for m, (before, after) in values.items() if None not in (before, after)},
        delta=delta,
        before=a,
        after=b,
    )


def unchanged(a: ModuleRecord, b: ModuleRecord) -> bool | None:
    """Tell whether the stored values of a matrix are equal, bit by bit.

    Args:
        a: its row in A.
        b: its row in B.

    Returns:
        None where a digest is missing, or is that of an update's small core.
    """
    if a.digest is None or b.digest is None or _is_low_rank(a) or _is_low_rank(b):
        return None
    return a.digest == b.digest and a.storage_dtype == b.storage_dtype


def no_delta(a: ModuleRecord) -> Delta:
    """Describe the change of a matrix that is equal on both sides.

    Args:
        a: its row in A.
    """
    has_norm = a.frobenius_norm is not None and a.frobenius_norm > 0
    return Delta(
        status="zero",
        relative_change=0.0 if has_norm else None,
        cosine=1.0 if has_norm else None,
        cosine_distance=0.0 if has_norm else None,
        frobenius_norm=0.0,
        spectral_norm=0.0,
    )


def make_delta(
    a: ModuleRecord, b: ModuleRecord, d: ModuleRecord, singular_values: Sequence[float], subspaces: Subspaces | None
) -> Delta:
    """Describe D = B - A, from the rows of A, B and D.

    <A, B> = (||A||^2 + ||B||^2 - ||D||^2)/2, and 1 - cosine = (||D||^2 - (||A|| - ||B||)^2)/(2 ||A|| ||B||).

    Args:
        a: the row of A.
        b: the row of B.
        d: the row of D.
        singular_values: of D, descending.
        subspaces: principal angles between A and B, None where none were computed.
    """
    before, after, moved = a.frobenius_norm, b.frobenius_norm, d.frobenius_norm
    distance = None
    if before and after and moved is not None:
        distance = max(0.0, (moved**2 - (before - after) ** 2) / (2 * before * after))
    return Delta(
        status=d.status,
        relative_change=moved / before if before and moved is not None else None,
        cosine=None if distance is None else 1 - distance,
        cosine_distance=distance,
        frobenius_norm=moved,
        spectral_norm=d.spectral_norm,
        stable_rank=d.stable_rank,
        effective_rank=d.effective_rank,
        alpha=d.alpha,
        alpha_null=d.alpha_null,
        square_alpha=d.square_alpha,
        singular_values=tuple(singular_values),
        subspaces=subspaces,
    )


def _is_low_rank(record: ModuleRecord) -> bool:
    """Tell whether the row is of an update, whose digest is that of its r x r core."""
    return 0 < record.n_eigenvalues < min(record.rows, record.cols) * record.n_slices
