"""Tensors of either model that have no counterpart: which of them count against the model, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from specdiag.checkpoint.quantised.dequantise import SCALE
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.verification.content import digest
from specdiag.verification.expected import Expected
from specdiag.verification.pairs import BUFFER, Pairs
from specdiag.verification.records import NotCompared

_WEIGHTS = ("1-D: bias, norm or vector", "0-D: a single value")
"""Reasons to be no matrix that say nothing about being a weight."""


def left_over(pairs: Pairs, before: Checkpoint, after: Checkpoint, expected: Expected) -> Iterator[NotCompared]:
    """List the tensors without a counterpart.

    Args:
        pairs: of both models.
        before: the first model.
        after: the model that is verified.
        expected: what the first model's tensors should have become.

    Raises:
        SourceError: a table that may be tied cannot be read.
    """
    known = {tensor.name: tensor for tensor in after.stored or ()}
    reasons = ({s.name: s.reason for s in before.skipped}, {s.name: s.reason for s in after.skipped})
    for tensor in pairs.only_before:
        tied = _harmless(tensor, reasons[0]) or _tied(tensor, expected.tensors)
        yield NotCompared(
            side="before", name=tensor.name, shape=tensor.shape, dtype=tensor.dtype,
            reason=tied or "no tensor of the verified model is its counterpart", cause=None if tied else "missing",
        )  # fmt: skip
    for tensor in pairs.only_after:
        tied = _harmless(tensor, reasons[1]) or _tied(tensor, known)
        tied = tied or _tied(tensor, expected.base, "the first model's ")
        yield NotCompared(
            side="after", name=tensor.name, shape=tensor.shape, dtype=tensor.dtype,
            reason=tied or "no tensor of the first model is its counterpart", cause=None if tied else "added",
        )  # fmt: skip


def _harmless(tensor: StoredTensor, reasons: Mapping[str, str]) -> str | None:
    """Say why a tensor does not decide what the model computes; None where it may."""
    if tensor.reason == SCALE:
        return SCALE
    if BUFFER.search(tensor.name):
        return "computed from the config"
    reason = reasons.get(tensor.name)
    return None if reason in _WEIGHTS or tensor.reason is not None else reason


def _tied(tensor: StoredTensor, tensors: Mapping[str, StoredTensor], of: str = "") -> str | None:
    """Find another table, of the same model or the first, that holds the same values in this type."""
    if len(tensor.shape) != 2 or tensor.reason is not None or tensor.values_dtype not in FLOAT_TYPES:
        return None
    own: int | None = None
    for name, other in tensors.items():
        is_alike = other.shape == tensor.shape and other.reason is None and other.values_dtype in FLOAT_TYPES
        if name == tensor.name or not is_alike or (not of and other.values_dtype != tensor.values_dtype):
            continue
        if not any(word in f"{name} {tensor.name}" for word in ("emb", "wte", "shared")):
            continue
        kind = FLOAT_TYPES[tensor.values_dtype]
        own = digest(tensor, kind) if own is None else own
        if digest(other, kind) == own:
            return f"a copy of {of}{name}"
    return None
