"""Where the numbers of a model lie among those of reference models: within their range, outside, or not comparable.

A number outside is no fault: the range is that of a few models, and says nothing of how well they work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from specdiag.architecture.classes import MODEL_CLASSES, ModelClass, model_class
from specdiag.records import ModuleRecord, Settings
from specdiag.reference.copies import copied
from specdiag.reference.ranges import NEEDED, Metric, Range, ReferenceRanges, is_comparable, measured, weights_digest
from specdiag.report import SpectralReport
from specdiag.text.counts import abbreviated, counted
from specdiag.text.names import listed
from specdiag.text.words import words

_NAMES: dict[ModelClass, str] = {
    "encoder": "encoder", "decoder": "decoder", "encoder-decoder": "encoder-decoder", "vision": "vision model",
}  # fmt: skip
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A number of a matrix beside those of the reference models.

    Attributes:
        key: name of the matrix.
        metric: the number.
        value: its value.
        low: the smallest value of the reference models.
        high: their largest.
        group: their class and places in the reference.
        models: they in words, with their sizes.
    """

    key: str
    metric: Metric
    value: float
    low: float
    high: float
    group: tuple[ModelClass, tuple[int, ...]]
    models: str

    @property
    def is_within(self) -> bool:
        """True where the value, with the digits that are shown, is one that the reference models have."""
        return float(_shown(self.low)) <= float(_shown(self.value)) <= float(_shown(self.high))

    @property
    def bounds(self) -> str:
        """The range in words."""
        return f"{_shown(self.low)} to {_shown(self.high)}"

    @property
    def beside(self) -> str:
        """The value with the range."""
        return f"{words(self.metric)} {_shown(self.value)} ({self.bounds})"

    @property
    def brief(self) -> str:
        """Where the value lies, without the models."""
        return (
            f"{words(self.metric)} {_shown(self.value)}, {'within' if self.is_within else 'outside of'} {self.bounds}"
        )

    def __str__(self) -> str:
        """Say where the value lies."""
        return f"{self.brief}, the range of {self.models}"


@dataclass(frozen=True, slots=True)
class Peers:
    """The reference models that a model may be held against.

    Attributes:
        reference: their numbers.
        architecture: of the model, as its report has it.
        settings: of its report.
        own: the place of the model itself among the sources, or of the one that it is a copy of, which it is not held
            against; None where there is none.
    """

    reference: ReferenceRanges
    architecture: str | None
    settings: Settings
    own: int | None = None

    @classmethod
    def of(cls, report: SpectralReport, reference: ReferenceRanges) -> Peers:
        """Find the peers of the model of a report."""
        return cls.beside(report.records, report.provenance.architecture, report.settings, reference)

    @classmethod
    def beside(
        cls, records: Iterable[ModuleRecord], architecture: str | None, settings: Settings, reference: ReferenceRanges
    ) -> Peers:
        """Find the peers of a model, itself not among them, nor the one that it is a copy of."""
        records = tuple(records)
        digest = weights_digest(records)
        equal = (i for i, s in enumerate(reference.sources) if s.left_out is None and s.digest == digest)
        own = next(equal, None)
        return cls(reference, architecture, settings, copied(records, architecture, reference) if own is None else own)

    def place(self, record: ModuleRecord, metric: Metric) -> Place | None:
        """Hold a matrix against the reference models.

        Args:
            record: of the matrix.
            metric: the number.

        Returns:
            None where it has no such number, or fewer than `NEEDED` independent models have one of its class and role.
        """
        found, value = self._range(record, metric), measured(record, metric)
        if found is None or value is None:
            return None
        others = [i for i, model in enumerate(found.models) if model != self.own]
        if len(others) < NEEDED:
            return None
        low, high = min(found.least[i] for i in others), max(found.most[i] for i in others)
        group = found.model_class, tuple(found.models[i] for i in others)
        return Place(record.key, metric, value, low, high, group, self._models([group]))

    def standing(self, records: Sequence[ModuleRecord]) -> str:
        """Say where the square_alpha of all matrices lie, or why that cannot be said.

        Args:
            records: of the model.
        """
        labels = Counter(map(_label, records))
        places = [
            replace(place, key=_label(r)) if labels[_label(r)] == 1 else place
            for r in records
            if (place := self.place(r, "square_alpha")) is not None
        ]
        if not places:
            return f"no comparable reference ({self.lacking(records)})"
        outside = [place for place in places if not place.is_within]
        models = self._models([place.group for place in places])
        text = f"{len(places) - len(outside)} of {len(places)} matrices lie within the square_alpha of {models}"
        if outside:
            named = listed((f"{p.key} {_shown(p.value)} ({p.bounds})" for p in outside), _SHOWN)
            text += f"; outside: {named}"
        return text

    def lacking(self, records: Iterable[ModuleRecord]) -> str:
        """Say what is missing for any comparison.

        Args:
            records: of the model.
        """
        comparable = [r for r in records if is_comparable(r) and r.square_alpha is not None]
        if not comparable:
            return "no whole matrix of attention or MLP has a square_alpha"
        classes = Counter[ModelClass | None](model_class(self.architecture, r.component) for r in comparable)
        kind = classes.most_common(1)[0][0]
        if kind is None:
            named = "config.json names no architecture" if self.architecture is None else self.architecture
            return f"{named}: its class is not known"
        found = [self._range(r, "square_alpha") for r in comparable]
        n = max(len({*r.models} - {self.own}) if r is not None and r.model_class == kind else 0 for r in found)
        return f"{counted(n, self._other + _NAMES[kind])}, {NEEDED} needed"

    def _range(self, record: ModuleRecord, metric: Metric) -> Range | None:
        kind = model_class(self.architecture, record.component)
        if kind is None or not is_comparable(record) or (metric == "rho" and not has_default_tail(self.settings)):
            return None
        return self.reference.find(kind, record, metric)

    @property
    def _other(self) -> str:
        return "" if self.own is None else "other "

    def _models(self, groups: Sequence[tuple[ModelClass, tuple[int, ...]]]) -> str:
        """Count the models of groups, class by class, with their sizes."""
        said: list[str] = []
        for kind in MODEL_CLASSES:
            found = [models for of, models in groups if of == kind]
            sizes = [self.reference.sources[model].n_parameters for models in found for model in models]
            if found:
                least, most = (f(map(len, found)) for f in (min, max))
                few = "" if least == most else f"{least} to "
                span = " to ".join(dict.fromkeys(map(abbreviated, (min(sizes), max(sizes)))))
                said.append(f"{few}{counted(most, self._other + _NAMES[kind])} of {span} parameters")
        return " and ".join(said)


def has_default_tail(settings: Settings) -> bool:
    """Tell whether the rho of a report is that of the ranges: alpha by Hill's estimator of the upper half.

    Args:
        settings: of the report.
    """
    return settings.tail == "hill" and settings.tail_fraction == 0.5


def _label(record: ModuleRecord) -> str:
    """Name a matrix by its place, shorter than its key."""
    return record.key if record.layer is None else f"layer {record.layer} {record.role}"


def _shown(value: float) -> str:
    return f"{value:.3g}"
