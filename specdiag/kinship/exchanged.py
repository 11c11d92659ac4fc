"""Parts that stand in another place: layers of one model at another index of the other, queries as keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from specdiag.kinship.alignment import Indices
from specdiag.kinship.distances import Logs, attention_distance
from specdiag.kinship.fingerprint import Fingerprint
from specdiag.kinship.models import Model
from specdiag.kinship.products import turned_cosine
from specdiag.kinship.records import Relation, Thresholds
from specdiag.kinship.side_by_side import matched_heads

_MOST = 64
"""Layers among which exchanged ones are looked for: the pairs grow with the square."""


def exchanged(
    found: Relation,
    places: Indices,
    models: tuple[Model, Model],
    prints: tuple[Fingerprint, Fingerprint],
    limits: Thresholds,
    device: str,
) -> Iterator[str]:
    """Name layers that stand elsewhere in the second model, and layers whose queries and keys changed places.

    Only layers that differ are looked at; those whose QK has the spectra of the other side are read once more.

    Args:
        found: their relation, decided.
        places: of its layers in the fingerprints.
        models: both.
        prints: their fingerprints.
        limits: thresholds.
        device: where products are computed.

    Yields:
        Sentences.

    Raises:
        SourceError: a tensor cannot be read.
    """
    if found.verdict != "derived":
        return
    moved = _moved(found, places, prints, limits)
    if moved:
        a, b = found.a, found.b
        named = ", ".join(f"layer {i} of {a} is layer {j} of {b}" for i, j in moved)
        yield f"Layers stand in another place: {named}."
    turned = [
        layer.layer_b
        for layer, pair in zip(found.layers, places, strict=True)
        if layer.attention < limits.same and layer.cosine is not None and layer.cosine < limits.same_cosine
        if _is_turned(models, prints, pair, limits, device)
    ]
    if turned:
        which = f"layer {turned[0]}" if len(turned) == 1 else f"layers {', '.join(map(str, turned))}"
        yield f"Queries and keys of {which} changed places."


def _moved(
    found: Relation, places: Indices, prints: tuple[Fingerprint, Fingerprint], limits: Thresholds
) -> list[tuple[int | None, int | None]]:
    """List layers of the first model with the layer of the second that has the same spectra at another index."""
    apart = [pair for layer, pair in zip(found.layers, places, strict=True) if not layer.carries]
    if not 1 < len(apart) <= _MOST:
        return []
    shift = 0.0 if found.scale is None else float(np.log(found.scale))
    of_a = {i: Logs.of(prints[0].blocks[i]) for i, _ in apart}
    of_b = {j: Logs.of(prints[1].blocks[j], shift) for _, j in apart}
    side: dict[str | None, list[int]] = defaultdict(list)
    for _, j in apart:
        side[prints[1].blocks[j].component].append(j)
    moved: list[tuple[int | None, int | None]] = []
    for i, own in apart:
        block = prints[0].blocks[i]
        near = {j: attention_distance(of_a[i], of_b[j]) for j in side[block.component] if j != own}
        if near and near[best := min(near, key=near.__getitem__)] < limits.same:
            moved.append((block.layer, prints[1].blocks[best].layer))
    return moved


def _is_turned(
    models: Sequence[Model], prints: Sequence[Fingerprint], pair: tuple[int, int], limits: Thresholds, device: str
) -> bool:
    blocks = matched_heads(models, prints, pair)
    cosine = None if blocks is None else turned_cosine(*blocks, device)
    return cosine is not None and cosine > limits.same_cosine
