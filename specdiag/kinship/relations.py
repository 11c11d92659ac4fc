"""The relation of two models: the distances of their layers, and the verdict that these and the thresholds give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np
from msgspec.structs import replace

from specdiag.kinship.alignment import Indices, align, others
from specdiag.kinship.distances import Logs, attention_distance, layer_distance, stream_scale
from specdiag.kinship.records import LayerRelation, LineageSource, Relation, Thresholds
from specdiag.kinship.spectra import BlockSpectra

Cosines = Mapping[tuple[str | None, int | None, int | None], float]
"""Cosines of the products of two layers, by component and index in either model."""


def incomparable(a: LineageSource, b: LineageSource) -> str | None:
    """Give the reason why two models cannot be compared; None where they can.

    Args:
        a: a model.
        b: another.
    """
    for side in (a, b):
        if side.problem is not None:
            return f"{side.label}: {side.problem}"
    for name, one, other in (("width", a.width, b.width), ("head size", a.head_dim, b.head_dim)):
        if one != other:
            return f"{a.label} has {name} {one} and {b.label} {other}"
    return None


def measure_layers(
    a: Sequence[BlockSpectra], b: Sequence[BlockSpectra], limits: Thresholds
) -> tuple[list[LayerRelation], Indices, float | None, float | None]:
    """Measure the distances of two models.

    Args:
        a: blocks of a model.
        b: blocks of another, of the same width and head size.
        limits: that decide which layers show a relation by themselves.

    Returns:
        The layers side by side, their places in a and b, the median distance of unequal layers (None where there are
        none), and the factor of the residual stream (None where there is none).
    """
    pairs = align(a, b)
    scales = bool(pairs) and all(a[i].scales and b[j].scales for i, j in pairs)
    scale = stream_scale([(a[i], b[j]) for i, j in pairs]) if scales else 0.0
    of_a, of_b = {i: Logs.of(a[i]) for i, _ in pairs}, {j: Logs.of(b[j], scale) for _, j in pairs}
    apart = [(i, j, attention_distance(of_a[i], of_b[j])) for i, j in others(a, b, pairs)]
    layers: list[LayerRelation] = []
    for i, j in pairs:
        near = layer_distance(of_a[i], of_b[j])
        around = [d for x, y, d in apart if i == x or j == y]
        ratio = near.attention / median(around) if around and median(around) > 0 else None
        layers.append(
            LayerRelation(
                component=a[i].component, layer_a=a[i].layer, layer_b=b[j].layer, attention=near.attention,
                mlp=near.mlp, worst=near.worst, ratio=ratio,
                carries=near.attention < limits.derived and ratio is not None and ratio < limits.derived_ratio,
            )
        )  # fmt: skip
    middle = median(d for _, _, d in apart) if apart else None
    return layers, pairs, middle, float(np.exp(scale)) if scales else None


def has_equal_sizes(a: Sequence[BlockSpectra], b: Sequence[BlockSpectra]) -> bool:
    """Tell whether two models have the same layers, heads and experts, as those of one function do.

    Args:
        a: blocks of a model.
        b: blocks of another.
    """
    sizes = ({(x.component, x.layer, x.qk.shape, len(x.mlps)) for x in side} for side in (a, b))
    first, second = sizes
    return first == second


def relation_of(a: str, b: str, layers: Sequence[LayerRelation], middle: float | None, scale: float | None) -> Relation:
    """Give the numbers of two models, not yet decided; not comparable where they have no layers.

    Args:
        a: label of a model.
        b: label of another.
        layers: side by side, with cosines where these were computed.
        middle: median distance of unequal layers.
        scale: factor of the residual stream.
    """
    if not layers:
        return Relation(a=a, b=b, verdict="not comparable", reason=f"{a} and {b} have no part of a model in common")
    attention = median(layer.attention for layer in layers)
    mlps = [layer.mlp for layer in layers if layer.mlp is not None]
    mlp = median(mlps) if mlps else None
    worst = max(layer.worst for layer in layers)
    ratio = attention / middle if middle else None
    cosines = [layer.cosine for layer in layers if layer.cosine is not None]
    cosine = fmean(cosines) if cosines else None
    return Relation(
        a=a, b=b, verdict="undecided", reason="", attention=attention, mlp=mlp, worst=worst, unequal=middle,
        ratio=ratio, cosine=cosine, scale=scale, layers=tuple(layers),
    )  # fmt: skip


def has_equal_spectra(found: Relation, limits: Thresholds) -> bool:
    """Tell whether spectra differ by no more than storage changes them.

    Args:
        found: numbers of two models.
        limits: thresholds.
    """
    attention, worst = found.attention or 0.0, found.worst or 0.0
    return attention < limits.same and (found.mlp or 0.0) < limits.same and worst < limits.same_worst


def judge(
    found: Relation, limits: Thresholds, *, equal_sizes: bool, is_turned: bool, doubts: Sequence[str] = ()
) -> Relation:
    """Decide what relation two models have.

    Args:
        found: their numbers.
        limits: thresholds.
        equal_sizes: as `has_equal_sizes` tells.
        is_turned: whether the products leave open that the residual stream was turned.
        doubts: sentences on what differs where spectra do not.
    """
    attention, ratio, worst = found.attention or 0.0, found.ratio, found.worst or 0.0
    numbers = f"distance {attention:.4f}" + (f", {ratio:.2f} of that of unequal layers" if ratio is not None else "")
    if equal_sizes and has_equal_spectra(found, limits) and (is_turned or _has_same_products(found, limits)):
        if not doubts:
            return replace(found, verdict="same function", basis="spectra", reason=f"{numbers}; largest {worst:.4f}")
        return replace(found, verdict="derived", basis="spectra", reason=f"{numbers}; but {doubts[0]}")
    if attention < limits.derived and ratio is not None and ratio < limits.derived_ratio:
        return replace(found, verdict="derived", basis="spectra", reason=numbers)
    taken = [
        layer
        for layer in found.layers
        if layer.attention < limits.layer and layer.ratio is not None and layer.ratio < limits.layer_ratio
    ]
    if taken:
        reason = f"{len(taken)} of {len(found.layers)} layers have distances below {limits.layer:g}; median {numbers}"
        return replace(found, verdict="derived", basis="part of the layers", reason=reason)
    if found.cosine is not None and found.cosine > limits.cosine:
        reason = f"{numbers}, which alone would not show it; the products have cosine {found.cosine:.2f}"
        return replace(found, verdict="derived", basis="products", reason=reason)
    if attention > limits.unrelated and ratio is not None and ratio > limits.unrelated_ratio:
        return replace(found, verdict="no relation shown", basis="spectra", reason=numbers)
    return replace(found, reason=numbers)


def _has_same_products(found: Relation, limits: Thresholds) -> bool:
    """Tell whether products leave no doubt that all layers compute the same."""
    cosines = [layer.cosine for layer in found.layers if layer.cosine is not None]
    return not cosines or min(cosines) > limits.same_cosine
