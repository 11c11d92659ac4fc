"""Running the measurements: threads on the CPU, batches by shape on an accelerator. Results come as they are done."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from specdiag.analysis.batches import Unit, batches
from specdiag.analysis.cache import Results
from specdiag.analysis.cost import memory
from specdiag.analysis.measuring import Read, Result, measure_read, measure_units, read_unit
from specdiag.errors import ComputationError, UsageError
from specdiag.records import Settings
from specdiag.resources import format_size, one_torch_thread
from specdiag.spectra.arithmetic import fixed_type
from specdiag.spectra.measure import FLOAT32_RANGE
from specdiag.spectra.solvers import crossing
from specdiag.system.blas_threads import OneBlasThread

if TYPE_CHECKING:
    from specdiag.spectra.eigenvalues import Spectrum

_log = logging.getLogger("specdiag")

_P = ParamSpec("_P")
_T = TypeVar("_T")

Kind = tuple[tuple[int, ...], str]
"""Shape and storage type: what can be stacked."""

_BATCH_BYTES = 1 << 30
"""Stored bytes that are gathered before the fullest shape goes to the accelerator."""


def affordable_workers(work: Sequence[Unit], settings: Settings, jobs: int, budget: int) -> int:
    """Count the workers whose largest units fit into memory together.

    Args:
        work: all units.
        settings: how they are measured.
        jobs: the most workers.
        budget: bytes for all workers together.

    Raises:
        UsageError: if the largest unit alone does not fit.
    """
    needs = sorted(((max(memory(m, settings) for m in u.matrices), u) for u in work), key=lambda n: -n[0])
    if needs and needs[0][0] > budget:
        need, unit = needs[0]
        raise UsageError(
            f"{unit.tensor.name} needs about {format_size(need)} and memory= allows {format_size(budget)}: "
            "allow more, or leave it out with exclude="
        )
    workers = 1
    while workers < min(jobs, len(needs)) and sum(n for n, _ in needs[: workers + 1]) <= budget:
        workers += 1
    return workers


def needs_torch(work: Sequence[Unit], settings: Settings) -> bool:
    """Tell whether torch solves some of the work."""
    largest = max((min(m.shape) for u in work for m in u.matrices), default=0)
    found = crossing()
    by_torch = largest >= min(found.float32, found.float64) or (settings.method, settings.dtype) == ("svd", "float32")
    return by_torch or settings.device != "cpu"


def on_cpu(work: Sequence[Unit], settings: Settings, workers: int, kept: Results | None = None) -> Generator[Result]:
    """Measure every unit, the most expensive first, one BLAS thread a worker; `kept` spares what it has."""
    order = batches(work, settings)
    with_torch = needs_torch(work, settings)
    with _pool(workers, with_torch=with_torch) as pool:
        running: set[Future[list[Result]]] = set()
        for batch in islice(order, workers):
            running.add(pool.submit(measure_units, batch, settings, kept))
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for batch in islice(order, len(done)):
                running.add(pool.submit(measure_units, batch, settings, kept))
            for future in done:
                yield from future.result()


def on_accelerator(
    work: Sequence[Unit],
    settings: Settings,
    workers: int,
    differences: dict[Kind, float],
    kept: Results | None = None,
) -> Generator[Result]:
    """Measure every unit with its spectra from the accelerator, matrices of one shape together.

    What was read waits by shape until together it is a gigabyte; then the fullest shape goes.

    Args:
        work: what to measure.
        settings: `device` names the accelerator.
        workers: CPU threads for reading and fitting.
        differences: receives, per shape and storage type, the largest relative difference to the CPU in float64.
        kept: results that need not be computed.
    """
    waiting: dict[Kind, list[Read]] = defaultdict(list)
    with _pool(workers, with_torch=True) as pool:
        for unit in sorted(work, key=lambda u: u.matrices[0].shape):
            for item in read_unit(unit, settings, kept):
                if not isinstance(item, Read):
                    yield item
                    continue
                waiting[item.stack.shape, item.storage.name].append(item)
                if sum(map(_nbytes, waiting.values())) >= _BATCH_BYTES:
                    fullest = max(waiting, key=lambda kind: _nbytes(waiting[kind]))
                    yield from _flush(waiting.pop(fullest), settings, pool, differences, kept)
        for batch in waiting.values():
            yield from _flush(batch, settings, pool, differences, kept)


def _nbytes(batch: list[Read]) -> int:
    return sum(item.stack.nbytes for item in batch)


def _flush(
    batch: list[Read],
    settings: Settings,
    pool: _Pool,
    differences: dict[Kind, float],
    kept: Results | None,
) -> Iterator[Result]:
    """Solve matrices of one shape and storage type; the first of them ever is also done on the CPU and compared."""
    from specdiag.spectra.accelerator import disagreement, solve

    low, high = FLOAT32_RANGE
    bad = [r.scanned.n_nonfinite > 0 or not low < r.scanned.largest < high for r in batch]
    good = [r for r, b in zip(batch, bad, strict=True) if not b]
    solved: list[Spectrum | None] = [None] * len(good)
    if good:
        try:
            solved = list(
                solve(
                    [r.stack for r in good],
                    [r.storage for r in good],
                    settings.device,
                    fixed_type(settings),
                )
            )
            kind = (good[0].stack.shape, good[0].storage.name)
            if kind not in differences and solved[0] is not None:
                difference, tolerated = disagreement(solved[0], good[0].stack, good[0].storage)
                if difference > tolerated:
                    raise ComputationError(f"upper eigenvalues differ from the CPU's by {difference:.1e}")
                differences[kind] = difference
        except ComputationError as error:
            shape = "x".join(str(d) for d in good[0].matrix.shape)
            _log.warning("%s matrices on %s: %s; the CPU takes over", shape, settings.device, error)
            solved = [None] * len(good)
    iterator = iter(solved)
    futures = [
        pool.submit(measure_read, r, settings, None if b else next(iterator), kept)
        for r, b in zip(batch, bad, strict=True)
    ]
    for future in futures:
        yield future.result()


class _Pool(ThreadPoolExecutor):
    """Worker threads, with one thread for every BLAS of the process until the last of them has ended."""

    def __init__(self, workers: int, *, with_torch: bool) -> None:
        begin = one_torch_thread if with_torch else None
        super().__init__(workers, thread_name_prefix="specdiag", initializer=begin)
        self._blas = OneBlasThread()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return super().submit(self._blas.within, partial(fn, *args, **kwargs))


@contextmanager
def _pool(workers: int, *, with_torch: bool) -> Generator[_Pool]:
    """A pool that an exception does not wait for: work not yet started is dropped."""
    with OneBlasThread(), _one_torch_thread(with_torch):
        pool = _Pool(workers, with_torch=with_torch)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _one_torch_thread(with_torch: bool) -> Generator[None]:
    """Give torch one thread here too, if it is used at all: workers, not libraries, share out the processors."""
    if not with_torch:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
