"""How fast this machine multiplies: the rate of symmetric rank-k updates on all processors, through specdiag's BLAS."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from specdiag.resources import available_cpus
from specdiag.spectra.blas import syrk

_SHAPE = (1024, 4096)
_UPDATES = 4


def analyse(folder: str) -> dict[str, Any]:
    """GFLOP/s of float32 and float64, n^2 m operations an update; `folder` is not read."""
    libraries = {i["filepath"]: i.get("architecture") for i in threadpool_info() if i["internal_api"] == "openblas"}
    return {
        "gflops": {name: rate(np.dtype(name)) for name in ("float32", "float64")},
        "blas": sorted({str(a) for path, a in libraries.items() if "64_" not in path}),
        "cpus": available_cpus(),
    }


def rate(dtype: np.dtype[Any]) -> float:
    """The best of five, one thread a processor."""
    n, m = _SHAPE
    cpus = available_cpus()
    blocks = [np.random.default_rng(i).standard_normal(_SHAPE).astype(dtype) for i in range(cpus)]

    def update(block: np.ndarray) -> None:
        gram = np.zeros((n, n), dtype)
        for _ in range(_UPDATES):
            syrk(block, gram, tall=False)

    with threadpool_limits(1), ThreadPoolExecutor(cpus) as pool:
        seconds = min(_timed(lambda: list(pool.map(update, blocks))) for _ in range(5))
    return cpus * _UPDATES * n * n * m / seconds / 1e9


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
