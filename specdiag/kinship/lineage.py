"""`lineage`: who descends from whom, by what the blocks of models compute and not by how that is stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import prod
from typing import TYPE_CHECKING, Unpack

from msgspec.structs import replace

from specdiag.checkpoint.opening import Opening, OpeningArguments, PlainArguments
from specdiag.comparison.sides import load_if_saved, open_side, require_stream
from specdiag.errors import UsageError
from specdiag.kinship.doubts import doubts
from specdiag.kinship.exchanged import exchanged
from specdiag.kinship.fingerprint import Fingerprint, take_fingerprint
from specdiag.kinship.mixes import find_mixes
from specdiag.kinship.models import Model, open_models
from specdiag.kinship.records import Lineage, LineageSource, Relation, Thresholds
from specdiag.kinship.relations import (
    has_equal_sizes,
    has_equal_spectra,
    incomparable,
    judge,
    measure_layers,
    relation_of,
)
from specdiag.kinship.side_by_side import with_cosines
from specdiag.kinship.signs import signs, zeros
from specdiag.kinship.spectra import Solver
from specdiag.report import SpectralReport
from specdiag.resources import may_have_accelerator
from specdiag.text import checks

if TYPE_CHECKING:
    from pathlib import Path

    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource
    from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix

_MOST = 64
"""Sources of a lineage: the pairs grow with the square."""


def lineage(
    *sources: AnalysisSource,
    part: str | None = None,
    base: str | os.PathLike[str] | None = None,
    stream: bool = False,
    role_map: str | os.PathLike[str] | None = None,
    device: str = "auto",
    jobs: int | None = None,
    memory: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Lineage:
    """Tell of each pair of models whether they compute the same, one derives from the other, or no relation is shown.

    Models are held against each other by the singular values of Q'K and O V of every head and of their MLPs, which
    stay the same when gains are folded, heads or neurons are mixed, rescaled or renumbered, names change or the
    residual stream is turned. A third model may be found to be a mix of two others, with their shares in each layer.
    Distances and thresholds are in the answer; the thresholds are provisional.

    Args:
        sources: two or more; each whatever `analyze` takes, or a run directory, whose newest checkpoint is taken.
        part: which of several models in a file.
        base: the model that sources which are adapters change.
        stream: read hub repositories by ranges, and write nothing to disk.
        role_map: TOML file with roles for names that the rules do not know.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. Everything is computed in float64, for `mps` on the CPU.
        jobs: worker threads; None for the processors that are available.
        memory: bytes that the workers may use together; None for half of the machine's.
        cache: a folder in which the spectra of models are kept, and found there; None for none.
        progress: called after each part of a layer, once over all models, and once over all pairs.

    Returns:
        A relation for each pair, with its layers, and the mixes.

    Raises:
        UsageError: fewer than two sources, a saved report, or an option that makes no sense.
        SourceError: a source cannot be read.

    Example:
        >>> found = specdiag.lineage("org/small", "org/small-chat")
        >>> found.between("A", "B").verdict
        'derived'
    """
    if len(sources) < 2:
        raise UsageError(f"lineage takes two sources or more, not {len(sources) or 'none'}")
    if len(sources) > _MOST:
        raise UsageError(f"lineage holds each source against all others and takes {_MOST} at most, not {len(sources)}")
    checks.function("progress", progress)
    solver = Solver(_device(checks.text("device", device)))
    jobs = None if jobs is None else checks.whole("jobs", jobs, least=1)
    memory = None if memory is None else checks.whole("memory", memory, least=1, hint="in bytes: 8 << 30 for 8G")
    folder = None if cache is None else checks.path("cache", cache)
    limits = Thresholds()
    models = open_models(_opened(sources, base, part=part, stream=stream, role_map=role_map), solver.device)
    prints = _fingerprints(models, solver, jobs, memory, folder, progress)
    models = [_with_print(m, p) for m, p in zip(models, prints, strict=True)]
    relations: list[Relation] = []
    pairs = list(combinations(range(len(models)), 2))
    for n, (i, j) in enumerate(pairs, 1):
        relations.append(_related(models[i], models[j], prints[i], prints[j], limits, solver.device))
        if progress is not None:
            progress(_progress(n, len(pairs), f"{models[i].record.label} and {models[j].record.label}"))
    records = tuple(m.record for m in models)
    mixes = find_mixes(models, prints, relations, limits, solver.device)
    return Lineage(
        sources=records, relations=tuple(relations), mixes=mixes, thresholds=limits, notes=tuple(_notes(records))
    )


def relate(a: Checkpoint, b: Checkpoint) -> Relation:
    """Tell what relation two open models have, computed on the CPU.

    Args:
        a: a model.
        b: another.

    Raises:
        SourceError: a tensor cannot be read.
    """
    models = open_models([a, b])
    prints = _fingerprints(models, Solver(), None, None, None, None)
    models = [_with_print(m, p) for m, p in zip(models, prints, strict=True)]
    return _related(models[0], models[1], prints[0], prints[1], Thresholds(), "cpu")


def _opened(
    sources: Sequence[AnalysisSource], base: str | os.PathLike[str] | None, **given: Unpack[PlainArguments]
) -> list[Checkpoint]:
    opening: OpeningArguments = {k: v for k, v in given.items() if v}  # pyright: ignore[reportAssignmentType]
    Opening.of({**given, "base": base})
    held = [load_if_saved(source) for source in sources]
    for source, report in zip(sources, held, strict=True):
        if isinstance(report, SpectralReport):
            raise UsageError(f"{source} is a saved report, which lacks the products of heads: name the model itself")
    require_stream(opening, held)
    opened = [open_side(source, base, opening, given).checkpoint for source in sources]
    return [checkpoint for checkpoint in opened if checkpoint is not None]


def _device(device: str) -> str:
    if device == "cpu" or (device == "auto" and not may_have_accelerator()):
        return "cpu"
    from specdiag.spectra.accelerator import resolve_device

    return resolve_device(device)


def _fingerprints(
    models: Sequence[Model],
    solver: Solver,
    jobs: int | None,
    memory: int | None,
    cache: Path | None,
    progress: Callable[[Progress], None] | None,
) -> list[Fingerprint]:
    from specdiag.kinship.kept import KeptFingerprints

    kept = None if cache is None else KeptFingerprints(cache, solver.device)
    total = sum(prod(row.shape) for model in models for row in model.rows)
    finished = 0

    def done(row: WeightMatrix) -> None:
        nonlocal finished
        finished += prod(row.shape)
        if progress is not None:
            progress(_progress(min(finished, total), total, row.name))

    found: list[Fingerprint] = []
    for model in models:
        known = None if kept is None else kept.find(model.checkpoint)
        if known is None and model.record.problem is None:
            known = take_fingerprint(model.rows, solver, scaled=model.scaled, jobs=jobs, memory=memory, done=done)
            if kept is not None:
                kept.keep(model.checkpoint, known)
        found.append(known or Fingerprint((), model.record.problem))
    return found


def _with_print(model: Model, found: Fingerprint) -> Model:
    from dataclasses import replace as replace_model

    problem = model.record.problem or found.problem
    share = None if problem else zeros(list(model.blocks.values()))
    return replace_model(model, record=replace(model.record, problem=problem, zeros=share))


def _related(a: Model, b: Model, of_a: Fingerprint, of_b: Fingerprint, limits: Thresholds, device: str) -> Relation:
    reason = incomparable(a.record, b.record)
    if reason is not None:
        return Relation(a=a.record.label, b=b.record.label, verdict="not comparable", reason=reason)
    layers, places, middle, scale = measure_layers(of_a.blocks, of_b.blocks, limits)
    pair, held = (a, b), (of_a, of_b)
    layers, is_turned = with_cosines(layers, places, pair, held, limits.turned, device)
    found = relation_of(a.record.label, b.record.label, layers, middle, scale)
    if found.attention is None:
        return found
    is_equal = has_equal_sizes(of_a.blocks, of_b.blocks)
    against = (
        doubts(pair, held, places, limits, device, is_turned=is_turned)
        if is_equal and has_equal_spectra(found, limits)
        else []
    )
    found = judge(found, limits, equal_sizes=is_equal, is_turned=is_turned, doubts=against)
    against = [*exchanged(found, places, pair, held, limits, device), *against]
    return replace(found, signs=signs(found, a.record, b.record, is_turned=is_turned, limits=limits, doubts=against))


def _notes(records: Sequence[LineageSource]) -> Iterator[str]:
    for record in records:
        yield from (f"{record.label}: {note}" for note in record.notes)
    for a, b in combinations(records, 2):
        if a.source == b.source and a.source.kind != "memory":
            yield f"{a.label} and {b.label} are the same source."


def _progress(done: int, total: int, name: str) -> Progress:
    from specdiag.analysis.run import Progress

    return Progress(done, total, done, total, done / max(total, 1), name)
