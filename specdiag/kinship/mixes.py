"""Mixes among models: each is held against every two others from which it may derive."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from specdiag.kinship.fingerprint import Fingerprint
from specdiag.kinship.models import Model
from specdiag.kinship.products import Products
from specdiag.kinship.records import LayerShare, Mix, Relation, Thresholds
from specdiag.kinship.shares import shares
from specdiag.kinship.side_by_side import products_of

_LEAST = 0.02
"""Share below which a parent is none."""


def find_mixes(
    models: Sequence[Model],
    prints: Sequence[Fingerprint],
    relations: Sequence[Relation],
    limits: Thresholds,
    device: str,
) -> tuple[Mix, ...]:
    """Find models that two others explain as a mix.

    Args:
        models: of a lineage.
        prints: their fingerprints.
        relations: of all pairs.
        limits: how much a mix may leave unexplained.
        device: where products are computed.

    Returns:
        For each model at most one, by the two parents that explain it best.

    Raises:
        SourceError: a tensor cannot be read.
    """
    near = {frozenset((r.a, r.b)): r.verdict for r in relations}
    found: dict[str, Mix] = {}
    for trio in combinations(range(len(models)), 3):
        labels = [models[i].record.label for i in trio]
        verdicts = [near[frozenset(pair)] for pair in combinations(labels, 2)]
        if any(verdict not in ("derived", "undecided", "same function") for verdict in verdicts):
            continue
        if all(verdict == "same function" for verdict in verdicts):  # what tells them apart may be rounding
            continue
        depths = {tuple((b.component, b.layer) for b in prints[i].blocks) for i in trio}
        if len(depths) > 1:
            continue
        mix = _mix_of([models[i] for i in trio], [prints[i] for i in trio], limits, device)
        if mix is not None and (mix.model not in found or mix.unexplained < found[mix.model].unexplained):
            found[mix.model] = mix
    return tuple(found.values())


def _mix_of(models: Sequence[Model], prints: Sequence[Fingerprint], limits: Thresholds, device: str) -> Mix | None:
    """Give the model of three that the others explain best; None where none is explained."""
    layers = [
        (block, products)
        for i, block in enumerate(prints[0].blocks)
        if (products := products_of(models, prints, [i] * 3, device)) is not None
    ]
    candidates: list[Mix] = []
    for child in range(3) if layers else ():
        order = [child, *(i for i in range(3) if i != child)]
        by_layer: list[LayerShare] = []
        for block, products in layers:
            own, unexplained = shares(_turned(products, order).kinds)
            by_layer.append(
                LayerShare(component=block.component, layer=block.layer, shares=own, unexplained=unexplained)
            )
        total = tuple(fmean(values) for values in zip(*(layer.shares for layer in by_layer), strict=True))
        left = fmean(layer.unexplained**2 for layer in by_layer) ** 0.5
        if min(total) < _LEAST or left > limits.mixed:
            continue
        names = [models[i].record.label for i in order]
        candidates.append(
            Mix(model=names[0], parents=tuple(names[1:]), shares=total, unexplained=left, layers=tuple(by_layer))
        )
    return min(candidates, key=lambda mix: mix.unexplained, default=None)


def _turned(products: Products, order: Sequence[int]) -> Products:
    place = [[i] * len(order) for i in order], [list(order) for _ in order]
    qk, ov, du = (None if t is None else t[place] for t in (products.qk, products.ov, products.du))
    assert ov is not None
    return Products(qk, ov, du)
