"""Threads that solve eigenproblems with one BLAS thread each, and leave everybody else's threads alone.

One BLAS thread whatever the machine: the same bits everywhere, and threads over matrices scale better. OpenBLAS, which
SciPy and NumPy bring, has one number of threads for the process: it is 1 as long as these threads live. torch has one
for each thread: it is 1 in these alone, so that training keeps its own, and with it its speed and its bits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Barrier
from types import TracebackType
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

from specdiag.resources import one_torch_thread

_T = TypeVar("_T")


class SolverThreads:
    """A thread pool; used in a `with`, or closed."""

    def __init__(self, count: int) -> None:
        """Start the threads."""
        self.count = count
        self._limit = _blas().limit(limits=1)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="specdiag")
        started = Barrier(count + 1)

        def begin() -> None:
            one_torch_thread()
            started.wait()

        own = torch.get_num_threads()
        for _ in range(count):
            self._pool.submit(begin)
        started.wait()
        # The number is also what threads to come begin with: that is the caller's again.
        torch.set_num_threads(own)

    def submit(self, task: Callable[[], _T]) -> Future[_T]:
        """Have one of the threads do it."""
        return self._pool.submit(task)

    def close(self) -> None:
        """Wait for what runs, drop what has not begun, and give OpenBLAS its threads back."""
        self._pool.shutdown(cancel_futures=True)
        self._limit.restore_original_limits()

    def __enter__(self) -> SolverThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def _blas() -> ThreadpoolController:
    """The BLAS of the wheels of SciPy and NumPy, which torch's wheels do not share; elsewhere whatever there is."""
    found = ThreadpoolController()
    wheels = found.select(prefix="libscipy_openblas")
    return wheels if len(wheels) else found.select(user_api="blas")
