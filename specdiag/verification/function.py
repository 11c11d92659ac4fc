"""A copy that holds other values may still compute the same: its layers are matched as `lineage` matches them."""

from __future__ import annotations

from msgspec.structs import replace

from specdiag.checkpoint.tensors import Checkpoint
from specdiag.kinship.lineage import relate
from specdiag.verification.records import Verification


def with_function(found: Verification, before: Checkpoint, after: Checkpoint) -> Verification:
    """Say whether the layers of two models compute the same, although their values differ.

    Args:
        found: a verification that failed.
        before: the original.
        after: the model that was verified.

    Raises:
        SourceError: a tensor cannot be read.
        UsageError: a layer does not fit into half of the memory.
    """
    relation = relate(before, after)
    if relation.verdict == "not comparable":
        return found
    numbers = f"distance {relation.attention:.4f}; specdiag lineage says more"
    sentence = {
        "same function": "The functions of the layers differ by no more than rounding changes them: the "
        f"copy is in another form, or was trained a little further ({numbers}).",
        "derived": f"The layers were not shown to compute the same, and the models are kin ({numbers}).",
    }.get(relation.verdict, f"The layers compute something else ({numbers}).")
    return replace(found, function=relation.verdict, notes=(*found.notes, sentence))
