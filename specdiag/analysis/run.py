"""The work of one analysis: shared out over processes and workers, drained as it is done, kept when it is cut off."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdiag.analysis.cache import Results
from specdiag.analysis.cost import flops, stored_bytes
from specdiag.analysis.cost import memory as need
from specdiag.analysis.processes import RankLost, Ranks, Rows, Share
from specdiag.analysis.workers import Kind, affordable_workers, needs_torch, on_accelerator, on_cpu, units
from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.records import Settings, Source
from specdiag.resources import available_cpus, total_memory
from specdiag.system.address_space import jobs_within, room


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an analysis is: matrices, stored bytes, and the share of the estimated work."""

    matrices: int
    n_matrices: int
    nbytes: int
    n_bytes: int
    share: float
    name: str


def measured(
    left: Sequence[WeightMatrix],
    source: Source,
    settings: Settings,
    jobs: int | None,
    memory: int | None,
    cache: str | os.PathLike[str] | None,
    ranks: Ranks | None,
    progress: Callable[[Progress], None] | None,
) -> tuple[Share, int, BaseException | None]:
    """What all processes found, the workers of this one, and why it is less than all: then it is this one's alone."""
    work = units(left)
    if ranks is not None:
        work = ranks.share(work, [sum(flops(m, settings) for m in unit.matrices) for unit in work])
    alike = 1 if ranks is None else ranks.local_size
    jobs = jobs_within(
        room(torch=needs_torch(work, settings)),
        jobs or max(1, available_cpus() // alike),
        max((need(m, settings) for unit in work for m in unit.matrices), default=0),
    )
    workers = affordable_workers(work, settings, jobs, memory or total_memory() // 2 // alike)
    differences: dict[Kind, float] = {}
    kept = None if cache is None else Results(Path(cache), settings)
    results = (
        on_cpu(work, settings, workers, kept)
        if settings.device == "cpu"
        else on_accelerator(work, settings, workers, differences, kept)
    )
    finished: Rows = {}
    cause: BaseException | None = None
    try:
        _collect(results, [m for unit in work for m in unit.matrices], settings, progress, finished)
    except KeyboardInterrupt as error:
        cause = error
    if kept is not None:
        kept.store.trim()
    whole = Share.of_work(source, settings, (m.key for m in left))
    share = Share(whole, finished, 0 if kept is None else kept.n_found, max(differences.values(), default=None))
    if ranks is not None and cause is None:
        try:
            share = share.with_others(ranks)
        except (KeyboardInterrupt, RankLost) as error:
            cause = error
    return share, workers, cause


def _collect(
    results: Any,
    selected: Sequence[WeightMatrix],
    settings: Settings,
    progress: Callable[[Progress], None] | None,
    finished: Rows,
) -> None:
    """Drain the results into `finished`, where they are kept when Ctrl-C ends it."""
    total = sum(flops(m, settings) for m in selected) or 1.0
    n_bytes = sum(stored_bytes(m) for m in selected)
    done = nbytes = 0.0
    for i, (matrix, record, eigenvalues) in enumerate(results, 1):
        finished[matrix.key] = (record, eigenvalues)
        done += flops(matrix, settings)
        nbytes += stored_bytes(matrix)
        if progress is not None:
            progress(Progress(i, len(selected), int(nbytes), n_bytes, done / total, matrix.key))
