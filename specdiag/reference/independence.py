"""Models that share weights, which count as one: a fine-tune, a copy in another format, two fine-tunes of one base.

Two sources are one model where they say so (`base_model` of the model card, `_name_or_path` of config.json, the base of
an adapter), where a matrix of one is in the other bit for bit, or where their layers have the same shapes and their
weights the same direction. Reports have no weights: two models of the same shapes, one of them known by its report
alone, count as one. What was pruned or distilled from another model is not recognised unless it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

from specdiag.architecture.classes import ModelClass, model_class
from specdiag.checkpoint.model_card import Card
from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.comparison.identities import match_by_role
from specdiag.comparison.sides import Side
from specdiag.reference.ranges import is_comparable
from specdiag.report import SpectralReport
from specdiag.text.printable import printable

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SAME_DIRECTION = 0.1
"""Cosine from which weights have a common origin: a fine-tune keeps 0.9 and more, weights trained apart stay near 0."""
_PAIRS = 6
"""Matrices whose directions are compared."""
_KEEP_THEIR_ORDER = ("v", "o", "up", "down", "gate")
"""Roles whose rows lie alike in all formats: rotary layouts of q and k differ."""


@dataclass(frozen=True)
class Candidate:
    """A source of a reference.

    Attributes:
        report: its numbers.
        checkpoint: its weights; None where only the report was given.
        card: its model card.
    """

    report: SpectralReport
    checkpoint: Checkpoint | None = None
    card: Card = field(default_factory=Card)

    @property
    def name(self) -> str:
        """The source, safe to print."""
        return printable(str(self.report.source))

    @cached_property
    def base(self) -> tuple[str, ...]:
        """The models that it says it was made from."""
        own = self.checkpoint.config.get("_name_or_path") if self.checkpoint is not None else None
        names = [*self.card.base, self.report.source.base]
        names += [own] if isinstance(own, str) and _HUB_ID.fullmatch(own) else []
        return tuple(dict.fromkeys(printable(name.partition("@")[0]) for name in names if name))

    @cached_property
    def classes(self) -> frozenset[ModelClass]:
        """The classes of its pieces."""
        architecture = self.report.provenance.architecture
        found: set[ModelClass | None] = {
            model_class(architecture, r.component) for r in self.report.records if is_comparable(r)
        }
        return frozenset(kind for kind in found if kind is not None)

    @cached_property
    def digests(self) -> frozenset[str]:
        """Digests of the values of its matrices in attention and MLP."""
        rows = (r for r in self.report.records if is_comparable(r) and r.status == "ok")
        return frozenset(r.digest for r in rows if r.digest is not None)


def same_model(candidate: Candidate, others: Iterable[Candidate]) -> str | None:
    """Find a model among others that a source shares weights with.

    Args:
        candidate: the source.
        others: independent models.

    Returns:
        The reason why they count as one; None where the source is a further model.

    Raises:
        SourceError: a file is gone, was cut short or is damaged.
    """
    for other in others:
        if (reason := _shared(candidate, other)) is not None:
            return f"the same model as {other.name}: {reason}"
    return None


def _shared(a: Candidate, b: Candidate) -> str | None:
    if common := _named(a) & _named(b):
        return f"both say that they are, or come from, {min(common)}"
    if a.digests & b.digests:
        return "they have equal matrices"
    if not a.classes & b.classes:
        return None
    sides = [Side(report=c.report, checkpoint=None).listing() for c in (a, b)]
    pairs = match_by_role(*sides)
    if not pairs:
        return None
    same_shapes = "their layers have the same shapes"
    if a.checkpoint is None or b.checkpoint is None:
        return f"{same_shapes}, and a report does not tell a fine-tune: name both checkpoints"
    cosine = _cosine(a.checkpoint, b.checkpoint, pairs)
    if cosine is None:
        return f"{same_shapes}, and no matrix of theirs can be compared"
    return f"their weights have the cosine {cosine:.2f}" if cosine >= _SAME_DIRECTION else None


def _named(candidate: Candidate) -> set[str]:
    source = candidate.report.source
    return {name.lower() for name in (*candidate.base, *([source.location] if source.kind == "hub" else []))}


def _cosine(a: Checkpoint, b: Checkpoint, pairs: dict[str, str]) -> float | None:
    """Compute the median cosine of a few matrices of two models; None where they share none that lie alike."""
    of_a, of_b = ({m.key: m for m in side.matrices if _is_plain(m)} for side in (a, b))
    plain = [(of_a[key], of_b[other]) for key, other in pairs.items() if key in of_a and other in of_b]
    return median(_direction(*pair) for pair in plain[:: len(plain) // _PAIRS + 1]) if plain else None


def _is_plain(matrix: WeightMatrix) -> bool:
    return matrix.module.role in _KEEP_THEIR_ORDER and matrix.rank is None and matrix.n_slices == 1


def _direction(a: WeightMatrix, b: WeightMatrix) -> float:
    import torch

    of_a, of_b = (m.load(dtype=torch.float32).flatten() for m in (a, b))
    return float(torch.nn.functional.cosine_similarity(of_a, of_b, dim=0))
