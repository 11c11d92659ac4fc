"""Layers of models side by side, their heads matched: cosines of their products."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from specdiag.function.parts import Block
from specdiag.kinship.alignment import Indices
from specdiag.kinship.distances import Logs, match_heads
from specdiag.kinship.fingerprint import Fingerprint
from specdiag.kinship.models import Model
from specdiag.kinship.products import Order, Products, inner_products
from specdiag.kinship.records import LayerRelation


def with_cosines(
    layers: Sequence[LayerRelation],
    places: Indices,
    models: tuple[Model, Model],
    prints: tuple[Fingerprint, Fingerprint],
    turned: float,
    device: str,
) -> tuple[list[LayerRelation], bool]:
    """Add the cosines of the products to layers. Cross-attention has none.

    Args:
        layers: side by side.
        places: their places in the fingerprints.
        models: both.
        prints: their fingerprints.
        turned: cosine below which products lie where the residual stream was turned.
        device: where they are computed.

    Returns:
        The layers, and whether the residual stream may have been turned: every product of every layer lies below.

    Raises:
        SourceError: a tensor cannot be read.
    """
    found: list[LayerRelation] = []
    largest: list[float] = []
    for layer, pair in zip(layers, places, strict=True):
        products = products_of(models, prints, pair, device)
        found.append(layer if products is None else replace(layer, cosine=products.cosine(0, 1)))
        largest += [] if products is None else [products.largest(0, 1)]
    return found, bool(largest) and max(largest) < turned


def products_of(
    models: Sequence[Model], prints: Sequence[Fingerprint], places: Sequence[int], device: str
) -> Products | None:
    """Compute the inner products of a layer of several models, heads matched to those of the first by their spectra.

    Args:
        models: all of one width and head size.
        prints: their fingerprints.
        places: of the layer in each of these.
        device: where they are computed.

    Returns:
        None where a layer is not that of self-attention, or the numbers of heads differ in more than two models.

    Raises:
        SourceError: a tensor cannot be read.
    """
    found = matched_heads(models, prints, places)
    return None if found is None else inner_products(*found, device)


def matched_heads(
    models: Sequence[Model], prints: Sequence[Fingerprint], places: Sequence[int]
) -> tuple[list[Block], list[Order]] | None:
    """Give the blocks of a layer in several models, and the order of heads of each that fits those of the first.

    Args:
        models: all of one width and head size.
        prints: their fingerprints.
        places: of the layer in each of these.

    Returns:
        None where a layer is not that of self-attention, or the numbers of heads differ in more than two models.
    """
    spectra = [found.blocks[i] for found, i in zip(prints, places, strict=True)]
    blocks = [model.blocks.get((s.component, s.layer)) for model, s in zip(models, spectra, strict=True)]
    known = [block for block in blocks if block is not None]
    logs = [Logs.of(s) for s in spectra]
    if len(known) < len(blocks) or (len(models) > 2 and len({len(log.qk) for log in logs}) > 1):
        return None
    pairs = [match_heads(logs[0], log) for log in logs[1:]]
    return known, [pairs[0][0].tolist(), *(cols.tolist() for _, cols in pairs)]
