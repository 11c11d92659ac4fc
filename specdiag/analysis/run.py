"""The work of one analysis: shared out over processes and workers, collected as it is done, kept when it is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from specdiag.analysis.batches import units
from specdiag.analysis.cache import Results
from specdiag.analysis.cost import flops
from specdiag.analysis.cost import memory as need
from specdiag.analysis.options import AnalysisOptions
from specdiag.analysis.processes import PartialResult, RankFailed, RankLost, Rows, agreement, said
from specdiag.analysis.workers import Kind, Result, affordable_workers, needs_torch, on_accelerator, on_cpu
from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.records import Settings, Source
from specdiag.resources import available_cpus, total_memory
from specdiag.system.address_space import jobs_within, room


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an analysis.

    Attributes:
        matrices: number of matrices that are done.
        n_matrices: number of all.
        nbytes: stored bytes of those that are done.
        n_bytes: stored bytes of all.
        fraction: finished fraction of the estimated work, from 0 to 1.
        name: key of the matrix that was done last.
    """

    matrices: int
    n_matrices: int
    nbytes: int
    n_bytes: int
    fraction: float
    name: str


class Outcome(NamedTuple):
    """The end of the work.

    Attributes:
        result: of all processes together; where `cause` is given, of this one alone.
        workers: number of threads of this process.
        cause: why the work ended early, None where it did not.
    """

    result: PartialResult
    workers: int
    cause: BaseException | None


def run(
    left: Sequence[WeightMatrix],
    source: Source,
    settings: Settings,
    options: AnalysisOptions,
) -> Outcome:
    """Measure matrices with the workers of this process, and put together what all processes found.

    A failure or a signal ends the work early and loses nothing that was measured: it is returned with the rest.

    Args:
        left: matrices to measure, the same in every process.
        source: the checkpoint.
        settings: numbers to compute.
        options: jobs, memory, cache, ranks and progress.

    Raises:
        UsageError: if the largest matrix does not fit into the memory that is allowed.
        RankFailed: if that is so in another process.
        RankLost: if another process ended before the work began.
    """
    ranks = options.ranks
    work = units(left)
    if ranks is not None:
        anybodys = [unit for unit in work if unit.tensor.owner is None]
        mine = ranks.own_part(anybodys, [sum(flops(m, settings) for m in unit.matrices) for unit in anybodys])
        work = [unit for unit in work if unit.tensor.owner == ranks.rank] + mine
    alike = 1 if ranks is None else ranks.local_size
    with agreement(ranks):
        jobs = jobs_within(
            room(torch=needs_torch(work, settings)),
            options.jobs or max(1, available_cpus() // alike),
            max((need(m, settings) for unit in work for m in unit.matrices), default=0),
        )
        workers = affordable_workers(work, settings, jobs, options.memory or total_memory() // 2 // alike)
        kept = None if options.cache is None else Results(options.cache, settings)
    differences: dict[Kind, float] = {}
    results = (
        on_cpu(work, settings, workers, kept)
        if settings.device == "cpu"
        else on_accelerator(work, settings, workers, differences, kept)
    )
    division = next((unit.tensor.division for unit in work if unit.tensor.division is not None), None)
    if division is not None:
        division.together = False
    digest = PartialResult.digest_of(source, settings, (m.key for m in left))
    finished: Rows = {}
    cause: BaseException | None = None
    try:
        with closing(results):
            _collect(results, [m for unit in work for m in unit.matrices], settings, options.progress, finished)
        if kept is not None:
            kept.store.trim()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - returned, and raised with what was measured
        cause = error
    n_cached = 0 if kept is None else kept.n_found
    failure = None if cause is None else said(cause)
    result = PartialResult(digest, finished, n_cached, max(differences.values(), default=None), failure)
    if ranks is not None and not isinstance(cause, KeyboardInterrupt):
        try:
            result = result.with_others(ranks)
        except (KeyboardInterrupt, RankFailed, RankLost, MemoryError, OSError) as error:
            cause = cause or error
    if division is not None:
        division.together = True
    return Outcome(result, workers, cause)


def _collect(
    results: Iterable[Result],
    selected: Sequence[WeightMatrix],
    settings: Settings,
    progress: Callable[[Progress], None] | None,
    finished: Rows,
) -> None:
    """Drain the results into `finished`, where they are kept when something ends it."""
    total = sum(flops(m, settings) for m in selected) or 1.0
    n_bytes = sum(m.stored_bytes for m in selected)
    done = nbytes = 0.0
    for i, (matrix, record, eigenvalues) in enumerate(results, 1):
        finished[matrix.key] = (record, eigenvalues)
        done += flops(matrix, settings)
        nbytes += matrix.stored_bytes
        if progress is not None:
            progress(Progress(i, len(selected), int(nbytes), n_bytes, done / total, matrix.key))
