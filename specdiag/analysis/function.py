"""The function of a checkpoint beside its stored matrices: rows of their own, and the gauge_shift of stored rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError
from specdiag.records import FUNCTION_ROLES, ModuleRecord, Settings

if TYPE_CHECKING:
    from specdiag.analysis.processes import Rows

Balanced = Mapping[str, WeightMatrix]
"""The balanced form of stored matrices, by their keys."""


def with_function(checkpoint: Checkpoint, settings: Settings) -> tuple[Checkpoint, Balanced]:
    """Add the matrices of its function to a checkpoint, where these are asked for.

    Args:
        checkpoint: an open one.
        settings: of the analysis.

    Returns:
        The checkpoint with further matrices and notes, and the balanced form of its stored ones.

    Raises:
        SourceError: only roles of the function are asked for and there are none, or two matrices have one name.
    """
    if not settings.function:
        return checkpoint, {}
    from specdiag.function.matrices import function_of

    function = function_of(checkpoint, settings.device)
    if settings.roles and set(settings.roles) <= set(FUNCTION_ROLES) and not function.rows:
        raise SourceError(f"{checkpoint.source}: {' '.join(function.notes)}")
    matrices = (*checkpoint.matrices, *function.rows)
    twice = duplicate(m.key for m in (*matrices, *_apart(function.balanced.values(), function.rows)))
    if twice is not None:
        raise SourceError(
            f"{checkpoint.source} holds a tensor of the name '{twice}', which its function needs: rename it"
        )
    return replace(checkpoint, matrices=matrices, notes=(*checkpoint.notes, *function.notes)), function.balanced


def needed(balanced: Balanced, selected: Sequence[WeightMatrix]) -> list[WeightMatrix]:
    """List the balanced forms of the selected matrices, but for those that are selected themselves.

    Args:
        balanced: all of them.
        selected: matrices of the analysis.
    """
    return _apart((balanced[matrix.key] for matrix in selected if matrix.key in balanced), selected)


def _apart(forms: Iterable[WeightMatrix], others: Iterable[WeightMatrix]) -> list[WeightMatrix]:
    held = {id(matrix) for matrix in others}
    return [form for form in forms if id(form) not in held]


def with_gauge_shift(records: Sequence[ModuleRecord], balanced: Balanced, finished: Rows) -> tuple[ModuleRecord, ...]:
    """Say of each stored row by how much its balanced form has another square_alpha.

    Args:
        records: rows of the report.
        balanced: the balanced form of each matrix that has one.
        finished: measured rows by key, those of balanced forms among them.
    """
    return tuple(
        structs.replace(record, gauge_shift=_shift(record, finished[form.key][0]))
        if (form := balanced.get(record.key)) is not None and form.key in finished
        else record
        for record in records
    )


def _shift(stored: ModuleRecord, balanced: ModuleRecord) -> float | None:
    both = (stored.square_alpha, balanced.square_alpha)
    return None if both[0] is None or both[1] is None else both[1] - both[0]
