"""`verify`: whether a merge, a conversion or a quantisation is what it claims to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING

from specdiag.analysis.source import open_source
from specdiag.checkpoint.opening import is_location, is_on_hub, location
from specdiag.checkpoint.reader import read_update
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError, UsageError
from specdiag.system.blas_threads import OneBlasThread
from specdiag.text import checks
from specdiag.verification.answer import answer
from specdiag.verification.expected import expect
from specdiag.verification.function import with_function
from specdiag.verification.judge import Judge
from specdiag.verification.leftovers import left_over
from specdiag.verification.pairs import Pair, pair_up
from specdiag.verification.records import TensorCheck, Verification
from specdiag.verification.tied import with_tied_tables

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource


def verify(
    base: AnalysisSource,
    *claimed: AnalysisSource,
    stream: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Verification:
    """Verify that a model is what it claims to be: base + adapter merged, or another model converted or quantised.

    Every tensor is read, norms, biases and embeddings too, one at a time. Float storage is replayed value by value;
    codes of few bits are judged by the size of their error.

    Args:
        base: the base model of an adapter, or the model that was converted or quantised: anything that `analyze` takes.
        claimed: the adapter (a path or hub id) and the merged model; or the converted or quantised model alone.
        stream: read what is on the hub by ranges, and write nothing to disk.
        progress: called after each tensor.

    Returns:
        The verdict, a row for each tensor, and what was not compared with its reason.

    Raises:
        UsageError: one or two models have to follow the base, and the adapter has to be one.
        SourceError: a source cannot be read, or the adapter was not made for such a model.

    Example:
        >>> specdiag.verify("org/base", "org/fine-tune").verdict
        'not verified'
    """
    if len(claimed) not in (1, 2):
        raise UsageError(f"verify takes two models, ORIGINAL CONVERTED, or BASE ADAPTER MERGED, not {len(claimed) + 1}")
    checks.flag("stream", stream)
    checks.function("progress", progress)
    if stream and not any(is_on_hub(source) for source in (base, *claimed)):
        raise UsageError("stream goes with a model on the hub, and none of these is one")
    before, after = _open(base, stream=stream), _open(claimed[-1], stream=stream)
    adapter = of_adapter = None
    if len(claimed) == 2:
        place = location(claimed[0])
        adapter, of_adapter = read_update(place, stream=stream and is_on_hub(place))
    where = "" if of_adapter is None else of_adapter.source.location
    expected = expect(adapter, before.stored or (), where, before.source.location)
    pairs = pair_up(before, after, expected.tensors)
    judge = Judge(expected, pairs, before, after)
    with OneBlasThread():
        tensors = tuple(_checked(judge, pairs.pairs, progress))
        unread = (*expected.not_compared, *left_over(pairs, before, after, expected))
        tensors, unread = with_tied_tables(tensors, unread, pairs.pairs, expected, after)
    notes = (*(f"BEFORE: {note}" for note in before.notes), *(f"AFTER: {note}" for note in after.notes))
    n_replaced = expected.n_replaced() if adapter is not None and not expected.updates else 0
    found = answer(
        before.source, None if of_adapter is None else of_adapter.source, after.source, tensors, unread, notes,
        n_replaced=n_replaced,
    )  # fmt: skip
    return found if found.verdict != "not verified" or adapter is not None else with_function(found, before, after)


def _open(source: AnalysisSource, *, stream: bool) -> Checkpoint:
    """Open one side."""
    checkpoint = open_source(source, stream=stream) if stream and is_on_hub(source) else open_source(source)
    name = checkpoint.source.location
    if any(matrix.rank is not None for matrix in checkpoint.matrices):
        raise UsageError(f"{name} is an adapter: give its base model before it, and the merged model after it")
    if checkpoint.stored is not None:
        return checkpoint
    hint = "give the folder of one component" if is_location(source) else "give its tensors"
    raise SourceError(f"the tensors of {name} are not listed as a whole: {hint}")


def _checked(
    judge: Judge, pairs: tuple[Pair, ...], progress: Callable[[Progress], None] | None
) -> Iterator[TensorCheck]:
    from specdiag.analysis.run import Progress

    sizes = [
        pair.after.tensor.nbytes * prod(pair.after.shape) // max(1, prod(pair.after.tensor.shape)) for pair in pairs
    ]
    total, done = sum(sizes), 0
    for i, (pair, size) in enumerate(zip(pairs, sizes, strict=True), 1):
        yield judge.check(pair)
        done += size
        if progress is not None:
            progress(Progress(i, len(pairs), done, total, done / max(total, 1), pair.before.key))
