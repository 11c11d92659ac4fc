"""The differences of matched weights: their spectra by the one loop of `analyze`, and principal angles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from specdiag.analysis.analyze import analyze
from specdiag.analysis.batches import units
from specdiag.analysis.cost import memory
from specdiag.analysis.options import FARMS
from specdiag.analysis.processes import agreement
from specdiag.analysis.run import Progress
from specdiag.analysis.workers import affordable_workers
from specdiag.comparison.changes import make_delta, no_delta, unchanged
from specdiag.comparison.difference import Pair, difference
from specdiag.comparison.records import Delta, Subspaces
from specdiag.comparison.subspaces import all_subspaces
from specdiag.records import ModuleRecord
from specdiag.resources import available_cpus, total_memory
from specdiag.system.address_space import jobs_within, room

if TYPE_CHECKING:
    from specdiag.analysis.options import ComputedArguments, ComputingArguments
    from specdiag.checkpoint.tensors import Checkpoint

_OF_DIFFERENCES = ("device", "dtype", "method", "tail", "tail_fraction", *FARMS, "jobs", "memory", "cache", "ranks")


def measure_deltas(
    pairs: Sequence[Pair],
    rows: Mapping[str, tuple[ModuleRecord, ModuleRecord]],
    a: Checkpoint,
    b: Checkpoint,
    *,
    subspace: int,
    options: ComputedArguments,
    progress: Callable[[Progress], None] | None,
) -> dict[str, Delta]:
    """Compute the changes of the weights. Matrices of equal digest are not read again.

    Args:
        pairs: matched matrices of equal shape.
        rows: their rows in A and B, by common name.
        a: the checkpoint of A.
        b: the checkpoint of B.
        subspace: dimension of the leading subspaces; 0 for none.
        options: of `analyze`.
        progress: called over the differences, then over the subspaces.

    Returns:
        The changes by common name. A matrix that is `failed` or `nonfinite` on a side has its status alone.

    Raises:
        Interrupted: Ctrl-C.
        AnalysisFailed: a failure after the first matrix, which is its cause.
        ComputationError: the address space has no room for the subspaces of the largest matrix, or another process
            failed there.
    """
    deltas: dict[str, Delta] = {}
    moved: list[Pair] = []
    for pair in pairs:
        statuses = {row.status for row in rows[pair[0]]}
        if statuses & {"nonfinite", "failed"}:
            deltas[pair[0]] = Delta(status="failed" if "failed" in statuses else "nonfinite")
        elif unchanged(*rows[pair[0]]):
            deltas[pair[0]] = no_delta(rows[pair[0]][0])
        else:
            moved.append(pair)
    if not moved:
        return deltas
    checkpoint = difference(moved, a, b)
    analysis_options = {name: value for name, value in options.items() if name in _OF_DIFFERENCES}
    arguments = cast("ComputingArguments", analysis_options)
    report = analyze(checkpoint, progress=progress, **arguments)
    angles: dict[str, Subspaces | None] = {}
    if subspace:
        ranks = arguments.get("ranks")
        n_processes = 1 if ranks is None else ranks.local_size
        jobs = arguments.get("jobs") or max(1, available_cpus() // n_processes)
        with agreement(ranks):
            largest = max(memory(m, report.settings) for m in checkpoint.matrices)
            workers = affordable_workers(
                units(checkpoint.matrices),
                report.settings,
                jobs_within(room(torch=False), jobs, largest),
                arguments.get("memory") or total_memory() // 2 // n_processes,
            )
            own_pairs = (
                moved if ranks is None else ranks.own_part(moved, [float(np.prod(pair[1].shape)) for pair in moved])
            )
            for name, angle in all_subspaces(own_pairs, subspace, workers):
                angles[name] = angle
                if progress is not None:
                    progress(Progress(len(angles), len(own_pairs), 0, 0, len(angles) / len(own_pairs), name))
        if ranks is not None:
            angles = {name: angle for deltas in ranks.exchange(angles) for name, angle in deltas.items()}
    for row in report:
        sigma = np.sqrt(report.eigenvalues(row.name)[::-1]).tolist()
        deltas[row.name] = make_delta(*rows[row.name], row, sigma, angles.get(row.name))
    return deltas
