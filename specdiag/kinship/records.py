"""The records of a lineage: its sources, a relation for each pair of them, and mixes of others among them.

A distance is a median of |d ln sigma| over singular values of what two blocks compute: 0 for one function in two forms.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from specdiag.records import Record, Source
from specdiag.storage.result import Result, Row

LineageVerdict = Literal["same function", "derived", "undecided", "no relation shown", "not comparable"]
Basis = Literal["spectra", "products", "part of the layers"]
"""The evidence that decided: spectra of all layers, the products themselves, or the spectra of some layers alone."""


class Thresholds(Record, frozen=True, kw_only=True):
    """The limits that decide. They are provisional: `basis` says what they rest on."""

    same: float = 0.002
    """Distance of attention below which only the storage differs; that of the MLP has to lie below it too."""
    same_worst: float = 0.02
    """Largest distance of a single spectrum that still passes as one function."""
    same_cosine: float = 0.999
    """Least cosine of the products of a layer that still passes as one function where one model has codes."""
    same_change: float = 0.001
    """Largest relative difference that passes in any floating-point type; in coarser ones their spacing at 1."""
    turned: float = 0.5
    """Cosine below which, in all layers, the residual stream of one function may have been turned."""
    derived: float = 0.1
    derived_ratio: float = 0.3
    unrelated: float = 0.13
    unrelated_ratio: float = 0.45
    layer: float = 0.02
    """Distance of single layers that shows them taken over where the model as a whole does not."""
    layer_ratio: float = 0.1
    cosine: float = 0.2
    """Cosine of the products that shows a relation where the spectra leave it open."""
    mixed: float = 0.25
    """Part of the difference of the parents that a mix may leave unexplained."""
    basis: str = (
        "provisional: BERT-like models of 4 to 30 layers and small random and trained models; no two independent "
        "trainings of one large architecture were at hand"
    )


class LineageSource(Record, frozen=True, kw_only=True):
    """A model of a lineage."""

    source: Source
    label: str
    """A letter: A for the first."""
    architecture: str | None = None
    n_layers: int = 0
    """Blocks whose wiring is known."""
    width: int | None = None
    head_dim: int | None = None
    heads: int | None = None
    """In the first of these blocks."""
    storage: tuple[str, ...] = ()
    """Types of the matrices in these blocks."""
    zeros: float | None = None
    """Share of weights that are exactly zero, in the first, the middle and the last of these blocks."""
    problem: str | None = None
    """The reason why it can be compared with nothing."""
    notes: tuple[str, ...] = ()


class LayerRelation(Record, frozen=True, kw_only=True):
    """A layer of one model beside one of the other."""

    component: str | None = None
    layer_a: int | None
    layer_b: int | None
    attention: float
    """Median |d ln sigma| of QK and OV over matched heads."""
    mlp: float | None = None
    """The same of the MLP's spectra; None where neither has an MLP that is known."""
    worst: float
    """The largest median of a single spectrum: of QK or OV of a head, or of an MLP's."""
    ratio: float | None = None
    """`attention` over its median between this layer and other layers of the other model."""
    cosine: float | None = None
    """Least cosine of QK, OV and DU themselves; None where it was not computed."""
    carries: bool = False
    """True where the layer alone shows a relation."""


class Relation(Record, frozen=True, kw_only=True):
    """Two models of a lineage."""

    a: str
    """Label of the first model."""
    b: str
    verdict: LineageVerdict
    reason: str
    """A sentence with the numbers that decided."""
    basis: Basis | None = None
    attention: float | None = None
    """Median over layers of their distances."""
    mlp: float | None = None
    worst: float | None = None
    """The largest median of a single spectrum."""
    unequal: float | None = None
    """Median distance of attention in unequal layers; None where there are none."""
    ratio: float | None = None
    """`attention` over `unequal`."""
    cosine: float | None = None
    """Mean over layers of the least cosine of QK, OV and DU themselves."""
    scale: float | None = None
    """Factor of the residual stream of B over that of A, which no output shows; None where norms stand elsewhere."""
    signs: tuple[str, ...] = ()
    """Sentences on how one may have become the other."""
    layers: tuple[LayerRelation, ...] = ()


class LayerShare(Record, frozen=True, kw_only=True):
    """Shares of the parents in a layer of a mix."""

    component: str | None = None
    layer: int | None
    shares: tuple[float, ...]
    unexplained: float


class Mix(Record, frozen=True, kw_only=True):
    """A model that the others explain as a mix: a merge of their weights, or layers of both."""

    model: str
    parents: tuple[str, ...]
    shares: tuple[float, ...]
    """Means over layers, in each of which they add up to 1."""
    unexplained: float
    """Distance from that mix over the distance of the parents."""
    layers: tuple[LayerShare, ...]


COLUMNS: tuple[str, ...] = (
    "a", "b", "verdict", "basis", "attention", "mlp", "worst", "unequal", "ratio", "cosine", "scale", "n_layers",
    "n_carrying", "reason",
)  # fmt: skip


class Lineage(Result, Record, frozen=True, kw_only=True):
    """The answer of `lineage`.

    Example:
        >>> specdiag.lineage("org/small", "org/small").relations[0].verdict
        'same function'
    """

    schema: int = 1
    sources: tuple[LineageSource, ...]
    relations: tuple[Relation, ...]
    mixes: tuple[Mix, ...] = ()
    thresholds: Thresholds = Thresholds()
    notes: tuple[str, ...] = ()

    def between(self, a: str, b: str) -> Relation:
        """The relation of two models.

        Args:
            a: label, `A` for the first source.
            b: label of another.

        Raises:
            KeyError: there is no such pair.
        """
        for relation in self.relations:
            if {relation.a, relation.b} == {a, b} and a != b:
                return relation
        raise KeyError((a, b))

    def to_json(self) -> bytes:
        """Encode the lineage as one JSON object, the content of its file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def to_records(self) -> list[Row]:
        """Make plain rows, one a pair.

        Returns:
            Rows with `COLUMNS`; None where there is no value.
        """
        return [_row(relation) for relation in self.relations]

    def _title(self) -> str:
        verdicts = "; ".join(f"{r.a} and {r.b}: {r.verdict}" for r in self.relations[:3])
        return f"{verdicts}{'; ...' if len(self.relations) > 3 else ''}"

    def _columns(self) -> tuple[str, ...]:
        return COLUMNS

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("a", "b", "verdict", "attention", "mlp", "ratio", "cosine")
        return names, [[getattr(relation, name) for name in names] for relation in self.relations]


def _row(relation: Relation) -> Row:
    counts = {"n_layers": len(relation.layers), "n_carrying": sum(layer.carries for layer in relation.layers)}
    return {name: counts[name] if name in counts else getattr(relation, name) for name in COLUMNS}
