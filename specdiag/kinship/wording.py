"""A lineage in sentences: the verdict, what decided, and what was not looked at. It accuses nobody."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.kinship.records import Lineage, LineageVerdict, Mix, Relation
from specdiag.kinship.signs import ranges
from specdiag.text.counts import percent
from specdiag.text.printable import printable

_SCALED = 0.01
"""Change of the residual stream's scale that is worth a line."""
_EVEN = 0.05
"""Range of the shares of layers below which they are one number."""
TITLES: dict[LineageVerdict, str] = {
    "same function": "Same function",
    "derived": "Derived",
    "undecided": "Undecided",
    "no relation shown": "No relation shown",
    "not comparable": "Not comparable",
}
_MEANINGS: dict[LineageVerdict, str] = {
    "same function": "the layers of {a} and {b} differ by no more than rounding does",
    "derived": "{a} comes from {b}, {b} from {a}, or both from a third model",
    "undecided": "{a} and {b} are closer than strangers or farther than kin",
    "no relation shown": "{a} and {b} differ as much as unequal layers do",
    "not comparable": "{reason}",
}
NOT_LOOKED_AT = "Embeddings, the head and the last norm were not compared."


def headline(found: Relation) -> str:
    """Write the verdict on two models in a line.

    Args:
        found: their relation.
    """
    meaning = _MEANINGS[found.verdict].format(a=found.a, b=found.b, reason=printable(found.reason))
    return f"{TITLES[found.verdict]}: {meaning}."


def facts(found: Relation) -> Iterator[tuple[str, str]]:
    """Give subject and sentence of what decided.

    Args:
        found: a relation.
    """
    if found.verdict == "not comparable":
        return
    assert found.attention is not None
    parts = [f"attention {found.attention:.4f}"]
    parts += [] if found.mlp is None else [f"MLP {found.mlp:.4f}"]
    parts += [] if found.worst is None else [f"largest of one spectrum {found.worst:.4f}"]
    yield "Distance", f"{', '.join(parts)} (median change of a singular value, in shares of it)"
    if found.unequal is not None and found.ratio is not None:
        yield "Unequal layers", f"distance {found.unequal:.2f}, of which equal layers have {found.ratio:.2f}"
    else:
        yield "Unequal layers", "none: with one layer, nothing shows what strangers would have"
    if found.cosine is not None:
        yield "Products", f"cosine {found.cosine:.3f} between QK, OV and DU themselves (0: other directions)"
    if found.scale is not None and abs(found.scale - 1) > _SCALED:
        yield "Scale", f"the residual stream of {found.b} is {found.scale:.3g} times that of {found.a}; taken out"
    if found.basis == "products":
        yield "Decided by", "the products: the spectra alone would not show it"
    elif found.basis == "part of the layers":
        yield "Decided by", "the layers that hardly differ: the others would not show it"
    carrying = [layer for layer in found.layers if layer.carries]
    n = len(found.layers)
    which = "all" if len(carrying) == n else f"{len(carrying)} of"
    named = f" ({ranges(layer.layer_b for layer in carrying)})" if 0 < len(carrying) < n else ""
    yield "Layers", f"{which} {n} show a relation by themselves{named}" if carrying else f"none of {n} by itself"
    for sign in found.signs:
        yield "Sign", sign


def mix(found: Mix) -> list[str]:
    """Describe a mix in a line, and its layers where their shares differ.

    Args:
        found: a mix.
    """
    shares = " + ".join(f"{share:.2f} {name}" for share, name in zip(found.shares, found.parents, strict=True))
    lines = [
        f"Mix: {found.model} is close to {shares} ({percent(found.unexplained)} of the parents' distance unexplained)."
    ]
    first = [layer.shares[0] for layer in found.layers]
    if max(first) - min(first) > _EVEN:
        cells = ", ".join(f"{layer.layer}: {layer.shares[0]:.2f}" for layer in found.layers)
        lines.append(f"Share of {found.parents[0]} by layer: {cells}.")
    return lines


def sentences(found: Lineage) -> Iterator[str]:
    """Write the limits that decided, their basis, and what was not looked at.

    Args:
        found: as `lineage` returned it.
    """
    limits = found.thresholds
    yield (
        f"Limits: same function below {limits.same:g}; derived below {limits.derived:g} and {limits.derived_ratio:g} "
        f"of unequal layers; no relation shown above {limits.unrelated:g} and {limits.unrelated_ratio:g}. They are "
        f"{limits.basis}."
    )
    yield NOT_LOOKED_AT
    yield from (printable(note) for note in found.notes)
