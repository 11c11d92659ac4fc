"""The saved ranges: quantiles of a few numbers by class of model and role, and the sources that they come from.

Norms are not among them: a norm depends on the scale of its neighbours, and over another norm it is the stable rank
again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from importlib.resources import as_file, files
from math import isfinite
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import msgspec

from specdiag.architecture.classes import ModelClass
from specdiag.errors import SourceError
from specdiag.files import json_decoder, shortened
from specdiag.records import ModuleRecord, Record, Role
from specdiag.storage.kinds import REFERENCE, read_record
from specdiag.storage.result import Result
from specdiag.text import checks

Metric = Literal["square_alpha", "rho", "stable_rank/n", "mp_spikes/n"]
METRICS: tuple[Metric, ...] = get_args(Metric)
"""Numbers that do not depend on the scale of the weights; n is the number of eigenvalues."""
PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""The quantiles that are kept: the first and the last are the range."""
NEEDED = 5
"""Fewest independent models of a class and role that a matrix is compared with."""
_LARGEST_FILE = 16 << 20
_LEAST: dict[Metric, float] = {"square_alpha": 1, "rho": 0, "stable_rank/n": 0, "mp_spikes/n": 0}
_MOST: dict[Metric, float] = {"stable_rank/n": 1 + 1e-9, "mp_spikes/n": 1}


class ReferenceSource(Record, frozen=True, kw_only=True):
    """A checkpoint or report that was named for a reference."""

    name: str
    """As it could be typed again, a hub id with its commit."""
    digest: str
    """That of its weights, as `weights_digest` gives it."""
    architecture: str | None = None
    n_parameters: int
    dtypes: tuple[str, ...]
    """Storage types of its matrices; those of dequantised ones name their format."""
    base: tuple[str, ...] = ()
    """Models that it says it was made from."""
    licence: str | None = None
    """As its model card says it."""
    left_out: str | None = None
    """The reason why none of its numbers are here; None where they are."""


class Range(Record, frozen=True, kw_only=True):
    """A metric of one role in one class of models, over all of their matrices."""

    model_class: ModelClass
    role: Role
    cross_attention: bool = False
    metric: Metric
    n_matrices: int
    models: tuple[int, ...]
    """The independent models that they are of, as places in the list of sources."""
    quantiles: tuple[float, ...]
    """At 0, 5, 25, 50, 75, 95 and 100 %, linear between neighbours."""
    least: tuple[float, ...]
    """The smallest value of each model, as `models` has them."""
    most: tuple[float, ...]
    """The largest value of each model."""

    @property
    def place(self) -> tuple[ModelClass, Role, bool, Metric]:
        """The class, role and metric: no two ranges share them."""
        return self.model_class, self.role, self.cross_attention, self.metric


class ReferenceRanges(Result, Record, frozen=True, kw_only=True):
    """The result of `build_reference`.

    Example:
        >>> found = specdiag.build_reference(["org/llama"])
        >>> sorted({(r.model_class, r.role) for r in found.ranges})[:2]
        [('decoder', 'down'), ('decoder', 'k')]
    """

    schema: int = REFERENCE.schema
    created: str
    version: str
    """The version of specdiag."""
    sources: tuple[ReferenceSource, ...]
    ranges: tuple[Range, ...]

    def to_json(self) -> bytes:
        """Encode the ranges as one JSON object, the content of their file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def find(self, model_class: ModelClass, record: ModuleRecord, metric: Metric) -> Range | None:
        """Find the range of a metric for matrices like one; None where no source has such a matrix.

        Args:
            model_class: of the model.
            record: of the matrix.
            metric: the metric.
        """
        wanted = (model_class, record.role, record.cross_attention, metric)
        return next((r for r in self.ranges if r.place == wanted), None)

    def _title(self) -> str:
        n_used = sum(source.left_out is None for source in self.sources)
        return f"{len(self.ranges)} ranges of {n_used} models"

    def _columns(self) -> tuple[str, ...]:
        return Range.__struct_fields__

    def _rows(self) -> tuple[Range, ...]:
        return self.ranges


ReferenceLike: TypeAlias = str | os.PathLike[str] | ReferenceRanges | None
"""A saved reference, one in memory, or None for the one that comes with specdiag."""
_decode = json_decoder(ReferenceRanges)


def load_reference(path: str | os.PathLike[str]) -> ReferenceRanges:
    """Read saved reference ranges.

    Args:
        path: a file of `ReferenceRanges.save`, or of `specdiag reference build -o`.

    Returns:
        The ranges.

    Raises:
        SourceError: the file is missing, is no reference, is of another schema, or holds what no models can give.
    """
    path = checks.path("path", path)
    found = read_record(path, _decode, REFERENCE, limit=_LARGEST_FILE)
    if problem := _implausible(found):
        raise SourceError(f"{path} is damaged ({shortened(problem)}); {REFERENCE.remedy}")
    return found


def the_reference(reference: ReferenceLike) -> ReferenceRanges:
    """Take the argument `reference` of a function: None is what comes with specdiag.

    Args:
        reference: as it was given.

    Raises:
        SourceError: it is a file that holds no reference.
        UsageError: it is something else.
    """
    if reference is None:
        return _shipped()
    if isinstance(reference, ReferenceRanges):
        return reference
    return load_reference(reference)


@cache
def _shipped() -> ReferenceRanges:
    with as_file(files("specdiag.reference") / "shipped.json") as path:
        return load_reference(Path(path))


def measured(record: ModuleRecord, metric: Metric) -> float | None:
    """Give the value of a metric, None where a matrix has none.

    Args:
        record: of the matrix.
        metric: the metric.
    """
    if metric == "square_alpha":
        return record.square_alpha
    if metric == "rho":
        return record.rho
    value = record.stable_rank if metric == "stable_rank/n" else record.mp_spikes
    return None if value is None or not record.n_eigenvalues else value / record.n_eigenvalues


def weights_digest(records: Iterable[ModuleRecord]) -> str:
    """Compute the SHA-256 over the digests of all matrices: equal for equal weights, whatever file they are in.

    Args:
        records: of a model.
    """
    digests = sorted(r.digest for r in records if r.digest is not None)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def is_comparable(record: ModuleRecord) -> bool:
    """Tell whether a matrix may be held against those of other models: whole weights of attention and MLP.

    Embeddings are not: tables of words, of positions and of types have one role. Nor are the updates of an adapter.
    """
    has_all = record.n_eigenvalues == record.n_slices * min(record.rows, record.cols)
    return record.family in ("attention", "mlp") and record.role != "other" and has_all


def _implausible(reference: ReferenceRanges) -> str | None:
    """Explain why no models can give a reference; None where it may be true."""
    for source in reference.sources:
        if source.n_parameters < 0:
            return f"'{source.name}' has {source.n_parameters} parameters"
    if len({r.place for r in reference.ranges}) < len(reference.ranges):
        return "a role has two ranges of one metric"
    used = {i for i, source in enumerate(reference.sources) if source.left_out is None}
    for r in reference.ranges:
        where = f"{r.metric} of {r.role} in class {r.model_class}"
        if not r.models or len({*r.models}) < len(r.models) or not used.issuperset(r.models):
            return f"{where}: its models are {list(r.models)} of {len(reference.sources)} sources"
        if r.n_matrices < len(r.models):
            return f"{where}: {r.n_matrices} matrices of {len(r.models)} models"
        if (
            len(r.quantiles) != len(PROBABILITIES)
            or list(r.quantiles) != sorted(r.quantiles)
            or not all(map(isfinite, r.quantiles))
            or r.quantiles[0] < _LEAST[r.metric]
            or r.quantiles[-1] > _MOST.get(r.metric, float("inf"))
        ):
            return f"{where}: its quantiles are {list(r.quantiles)}"
        pairs = list(zip(r.least, r.most, strict=False))
        if (
            not len(r.least) == len(r.most) == len(r.models)
            or not all(low <= high for low, high in pairs)
            or (min(r.least), max(r.most)) != (r.quantiles[0], r.quantiles[-1])
        ):
            return f"{where}: its models have {pairs}"
    return None
