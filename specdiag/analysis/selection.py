"""The matrices of an analysis: those that were asked for, each once; the others are listed with their reasons."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.errors import SourceError, UsageError
from specdiag.records import Settings, Skipped
from specdiag.spectra.tail_rules import TAIL_RULES
from specdiag.text.counts import counted
from specdiag.text.globs import check_globs, chosen

EQUAL = "(equal values)"
"""End of the reason of a copy that its values alone show."""


def select(checkpoint: Checkpoint, settings: Settings) -> tuple[list[WeightMatrix], list[Skipped]]:
    """Choose the matrices that were asked for.

    Args:
        checkpoint: an open checkpoint.
        settings: globs, roles, and what is refused for updates of low rank.

    Returns:
        The chosen matrices in stored order, and everything else with its reason.

    Raises:
        UsageError: if a pattern matches nothing, or a setting makes no sense for an update of low rank.
        SourceError: if nothing is left.
    """
    names = [(m.key, m.name) for m in checkpoint.matrices]
    check_globs("include", settings.include, names, "matrices")
    check_globs("exclude", settings.exclude, names, "matrices")

    def wanted(matrix: WeightMatrix) -> bool:
        return chosen((matrix.key, matrix.name), settings.include, settings.exclude) and (
            not settings.roles or matrix.module.role in settings.roles
        )

    selected: list[WeightMatrix] = []
    left: list[Skipped] = []
    for matrix in checkpoint.matrices:
        if wanted(matrix):
            selected.append(matrix)
        else:
            left.append(skip(matrix, "not selected"))
    if not selected:
        raise SourceError(_nothing(checkpoint, left))
    _refuse_for_low_rank(selected, settings)
    return selected, [*checkpoint.skipped, *left]


def _refuse_for_low_rank(selected: Sequence[WeightMatrix], settings: Settings) -> None:
    by_windows = TAIL_RULES[settings.tail].windows is not None
    given = f"tail={settings.tail}" if by_windows else "randomize=True" if settings.randomize else None
    updates = sum(m.rank is not None for m in selected)
    if given and updates:
        raise UsageError(
            f"{given} looks at the entries of a matrix, and {updates} of {len(selected)} are updates of low rank, "
            "which are never formed: leave it out, or give base= for W + delta"
        )


def drop_tied(matrices: Sequence[WeightMatrix]) -> tuple[list[WeightMatrix], list[Skipped]]:
    """Keep one of the embeddings and heads that are stored twice with equal bytes.

    A safetensors file cannot say that two names share their memory, so those of equal shape are compared by value:
    first by one row, for a slow connection reads them whole only where that may pay.

    Args:
        matrices: in stored order.

    Returns:
        Those to analyse, and the others with the name of their twin.

    Raises:
        SourceError: if a value cannot be read.
    """
    groups: dict[tuple[tuple[int, ...], str], list[WeightMatrix]] = defaultdict(list)
    for m in matrices:
        if m.module.family == "embedding" and m.module.part is None and m.rank is None:
            groups[m.tensor.shape, m.tensor.dtype].append(m)
    tied: dict[str, Skipped] = {}
    for group in groups.values():
        first: dict[bytes, str] = {}
        for m in _with_equal_rows(group):
            digest = _digest(m.tensor)
            if digest in first:
                tied[m.key] = skip(m, f"tied to {first[digest]} {EQUAL}")
            else:
                first[digest] = m.name
    return [m for m in matrices if m.key not in tied], list(tied.values())


def _with_equal_rows(group: Sequence[WeightMatrix]) -> list[WeightMatrix]:
    """Those whose first row is that of another one too."""
    rows = [m.tensor.read(0).tobytes() for m in group] if len(group) > 1 else []
    return [m for m, row in zip(group, rows, strict=False) if rows.count(row) > 1]


def _digest(tensor: StoredTensor) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(tensor.read(None)).data).digest()


def skip(matrix: WeightMatrix, reason: str) -> Skipped:
    """Make the entry of a matrix that is left out.

    Args:
        matrix: name, shape and type of it.
        reason: why, as a report lists it.
    """
    return Skipped(
        name=matrix.name,
        part=matrix.module.part,
        shape=matrix.tensor.shape if matrix.rank is None else matrix.shape,
        dtype=matrix.storage_dtype,
        reason=reason,
    )


def _nothing(checkpoint: Checkpoint, left: Sequence[Skipped]) -> str:
    if left:
        return f"{checkpoint.source}: none of the {len(left)} matrices has the asked-for role and name"
    if not checkpoint.skipped:
        return f"{checkpoint.source} holds no tensors: save the weights again, or give the file that has them"
    reasons: dict[str, int] = defaultdict(int)
    for s in checkpoint.skipped:
        reasons[s.reason] += 1
    listed = "; ".join(f"{n} {reason}" for reason, n in sorted(reasons.items(), key=lambda r: -r[1])[:4])
    return f"{checkpoint.source}: nothing to analyse in {counted(checkpoint.n_tensors, 'tensor')} ({listed})"
