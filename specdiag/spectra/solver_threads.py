"""Threads that solve eigenproblems with one BLAS thread each, and leave everybody else's threads alone.

One BLAS thread whatever the machine: the same bits everywhere, and threads over matrices scale better. OpenBLAS, which
SciPy and NumPy bring, has one number of threads for the process: it is 1 as long as these threads live. torch has one
for each thread: it is 1 in these alone, so that training keeps its own, and with it its speed and its bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier
from types import TracebackType
from typing import TypeVar

import torch

from specdiag.resources import one_torch_thread
from specdiag.system.blas_threads import OneBlasThread

_T = TypeVar("_T")


class SolverThreads:
    """A thread pool; used in a `with`, or closed."""

    def __init__(self, count: int) -> None:
        """Start the threads."""
        self.count = count
        self._blas = ExitStack()
        self._blas.enter_context(OneBlasThread(without_torch=True))
        weakref.finalize(self, self._blas.close)
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
        self._blas.close()

    def __enter__(self) -> SolverThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
