"""Signs of how one model may have become another: zeros, codes, layers left out, parts that did not move."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from specdiag.function.parts import Block
from specdiag.function.stored import Weight
from specdiag.kinship.records import LineageSource, Relation, Thresholds
from specdiag.text.counts import percent

_PRUNED = 0.05
"""Difference of the shares of zeros from which one model is pruned against the other."""


def zeros(blocks: Sequence[Block]) -> float | None:
    """Count the share of weights that are exactly zero, in the first, the middle and the last block.

    Args:
        blocks: of a model.

    Raises:
        SourceError: a tensor cannot be read.
    """
    places = sorted({0, len(blocks) // 2, len(blocks) - 1}) if blocks else []
    n_zero, n = 0, 0
    for weight in (w for i in places for w in weights_of(blocks[i])):
        values = weight.read().weight
        n_zero, n = n_zero + values.size - int(np.count_nonzero(values)), n + values.size
    return n_zero / n if n else None


def weights_of(block: Block) -> Iterator[Weight]:
    """List the matrices of a block.

    Args:
        block: its wiring is known.
    """
    if (attention := block.attention) is not None:
        yield from (attention.q, attention.k, attention.v, attention.o)
    for mlp in block.mlps[:1]:
        yield from (weight for weight in (mlp.gate, mlp.up, mlp.down) if weight is not None)


def signs(
    found: Relation, a: LineageSource, b: LineageSource, limits: Thresholds, *, is_turned: bool, doubts: Sequence[str]
) -> tuple[str, ...]:
    """Write sentences on how one may have become the other; none where no relation is shown.

    Args:
        found: their relation, decided.
        a: the first.
        b: the second.
        limits: thresholds.
        is_turned: whether the products leave open that the residual stream was turned.
        doubts: sentences on what differs where spectra do not.
    """
    if found.verdict not in ("same function", "derived"):
        return ()
    turned = (
        f"The products have cosine {found.cosine:.2f}: the residual stream was turned."
        if found.verdict == "same function"
        else f"The products have cosine {found.cosine:.2f}: the residual stream was turned, or only the spectra agree.",
    )
    return (
        *doubts,
        *_signs(found, a, b, limits, bool(doubts)),
        *(turned if is_turned and found.basis == "spectra" else ()),
    )


def _signs(
    found: Relation, a: LineageSource, b: LineageSource, limits: Thresholds, is_explained: bool
) -> Iterator[str]:
    how: list[str] = []
    if a.zeros is not None and b.zeros is not None and abs(a.zeros - b.zeros) > _PRUNED:
        more, less = (a, b) if a.zeros > b.zeros else (b, a)
        how.append(
            f"{percent(max(a.zeros, b.zeros))} of the weights of {more.label} are zero and "
            f"{percent(min(a.zeros, b.zeros))} of {less.label}'s: pruned."
        )
    if a.storage != b.storage:
        how.append(f"{_stored(a)}, {_stored(b)}.")
    if a.n_layers != b.n_layers:
        more, less = (a, b) if a.n_layers > b.n_layers else (b, a)
        how.append(
            f"{less.label} has {less.n_layers} layers and {more.label} {more.n_layers}: layers left out or repeated."
        )
    if a.heads != b.heads:
        how.append(f"{a.label} has {a.heads} heads a layer and {b.label} {b.heads}.")
    yield from how
    if found.verdict == "derived" and not is_explained:
        still = [
            name
            for name, value in (("attention", found.attention), ("the MLP", found.mlp))
            if value is not None and value < limits.same
        ]
        if len(still) == 1:
            yield f"Of most layers only {'the MLP' if still == ['attention'] else 'attention'} moved."
        elif not how:
            yield "No zeros, codes or missing layers: further training, an edit of weights or a merge."
        carried = [layer for layer in found.layers if layer.carries]
        if 0 < len(carried) < len(found.layers):
            yield f"{len(carried)} of {len(found.layers)} layers carry it: {ranges(x.layer_b for x in carried)}."


def ranges(layers: Iterable[int | None]) -> str:
    """Write numbers of layers, those that follow each other as a range.

    Args:
        layers: their numbers, in order.
    """
    runs: list[list[int]] = []
    for layer in layers:
        if layer is None:
            continue
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _stored(side: LineageSource) -> str:
    return f"{side.label} is stored as {', '.join(side.storage)}"
