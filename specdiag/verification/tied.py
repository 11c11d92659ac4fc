"""Tables that a model shares: an update of head or token embedding that a merge in place added to both.

Beside its base an adapter of one of them leaves the other as it is; PEFT warns of such merges, and makes them. Where
both are adapted (`ensure_weight_tying`) both updates land in the one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import msgspec

from specdiag.auditing.heads import HEAD, TOKENS, ties
from specdiag.checkpoint.adapters.update import Update
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.verification.expected import Expected, added, product
from specdiag.verification.merges import compare_merge
from specdiag.verification.pairs import Pair
from specdiag.verification.records import NotCompared, TensorCheck

_WRITES = re.compile(r".*(ForCausalLM|LMHeadModel|ForConditionalGeneration)")


def with_tied_tables(
    tensors: Sequence[TensorCheck],
    unread: Sequence[NotCompared],
    pairs: Sequence[Pair],
    expected: Expected,
    after: Checkpoint,
) -> tuple[tuple[TensorCheck, ...], tuple[NotCompared, ...]]:
    """Name the tables that a merge changed together although the adapter changes one of the two, or each by itself.

    Args:
        tensors: the rows of all pairs.
        unread: what has no counterpart.
        pairs: the pairs of the rows, in their order.
        expected: what a right merge gives.
        after: the model that is verified.

    Returns:
        Both, with the cause `tied table` for each such table.

    Raises:
        SourceError: a table cannot be read.
    """
    rows, rest = list(tensors), list(unread)
    absent = {entry.name: i for i, entry in enumerate(rest) if entry.side == "before"}
    for head in expected.tied.keys() & absent.keys():
        for place, pair in enumerate(pairs):
            if rows[place].outcome == "differs" and _holds(pair, expected.tied[head], expected):
                name = pair.before.tensor.name
                one = f"the update of {head} was added to it, so that the tokens that the model reads change too"
                both = f"the updates of {name} and {head} were both added to it"
                rows[place] = _named(rows[place], both if name in expected.updates else one)
                i = absent[head]
                rest[i] = msgspec.structs.replace(rest[i], reason=f"one tensor with {name} in the model", cause=None)
                break
    if _shares(after) and not expected.tied:
        words = "its head is this tensor too, and changes with it: the adapter changes the embedding alone"
        own = {tensor.name for tensor in expected.base.values() if HEAD.fullmatch(tensor.name)}
        for place, pair in enumerate(pairs):
            name, row = pair.before.tensor.name, rows[place]
            is_right = (
                row.updated and row.outcome in ("equal", "rounded", "within rounding") and row.strength is not None
            )
            if is_right and TOKENS.fullmatch(name) and not own & expected.updates.keys():
                rows[place] = _named(row, words)
    return tuple(rows), tuple(rest)


def _named(row: TensorCheck, detail: str) -> TensorCheck:
    return msgspec.structs.replace(row, outcome="differs", cause="tied table", detail=detail)


def _shares(model: Checkpoint) -> bool:
    """Tell whether a model writes tokens by the table that it reads them by."""
    classes = model.config.get("architectures")
    names = cast("list[object]", classes) if isinstance(classes, list) else []
    writes = any(isinstance(name, str) and _WRITES.fullmatch(name) for name in names)
    has_head = any(HEAD.fullmatch(tensor.name) for tensor in model.stored or ())
    return writes and not has_head and ties(model.config) is True


def _holds(pair: Pair, update: Update, expected: Expected) -> bool:
    """Tell whether a table is what it should be plus the update of the head."""
    base, after = expected.base.get(pair.before.tensor.name), pair.after.tensor
    fitted = None if base is None else update.fitted_to(base.shape)
    is_table = base is not None and base.shape == after.shape and pair.after.slicer is None
    if base is None or fitted is None or not is_table or not (pair.before.is_float and pair.after.is_float):
        return False
    asked = added(pair.before.tensor, product(fitted, base))
    found = compare_merge(pair.before.of(base).read(), pair.before.of(asked).read(), pair.after.read())
    return found.is_right and found.strength is not None
