"""Other ways to the eigenvalues of a symmetric matrix than the one that specdiag takes, and what each costs.

The way taken: one tridiagonal reduction a core, half of it bound by memory. Beside it, in turns, as ratios of medians:

* two stages: to a band by matrix products, then to three diagonals (LAPACK's `dsyev_2stage`);
* one at a time: a single reduction on all cores and their caches, against one reduction on each core at once;
* blocks: more or fewer columns reduced at once, by the size of the workspace.

    python benchmarks/reductions.py    # three minutes; what it prints stands in docs/scale.md
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from specdiag.resources import openblas_kernel, processor_vendor
from specdiag.spectra import blas

SIZES = (576, 768, 1024, 1536, 2048, 3072)
BLOCKS = (8, 32, 64)
Gram = NDArray[np.float64]
Solve = Callable[[Gram], object]


def main() -> None:
    """Print a line for each size: the way taken in milliseconds, and the others over it."""
    two_stages, cores = _two_stages(), 2
    print(f"{processor_vendor()}, OpenBLAS kernel {openblas_kernel()}, float64, one core unless said otherwise\n")
    blocks = "".join(f"{f'blocks of {n}':>13}" for n in BLOCKS)
    print(f"{'n':>5} {'taken ms':>9} {'two stages':>11} {blocks} {f'one at a time on {cores} cores':>28}")
    for n in SIZES:
        gram = _gram(n)
        rounds = 7 if n <= 1024 else 3
        with threadpool_limits(1):
            ways: dict[str, Solve] = {"taken": blas.eigvalsh, "two stages": two_stages}
            ways |= {str(size): _in_blocks(size) for size in BLOCKS}
            seconds = _in_turns(ways, gram, rounds)
        taken = seconds.pop("taken")
        ratios = [f"{value / taken:.2f}" for value in seconds.values()]
        together = _ratio_together(gram, cores, rounds)
        print(f"{n:5} {taken * 1e3:9.1f} {ratios[0]:>11} {''.join(f'{r:>13}' for r in ratios[1:])} {together:28.2f}")


def _gram(n: int) -> Gram:
    gram = np.zeros((n, n))
    blas.syrk(np.random.default_rng(n).standard_normal((n, n)), gram, tall=True)
    return gram


def _in_turns(ways: dict[str, Solve], gram: Gram, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, solve in ways.items():
            copied = gram.copy()
            begin = time.perf_counter()
            solve(copied)
            times[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in times.items()}


def _ratio_together(gram: Gram, cores: int, rounds: int) -> float:
    """Time `cores` reductions one after the other, each on all cores, over as many at once, each on one."""

    def one_at_a_time(_: Gram) -> None:
        for _ in range(cores):
            blas.eigvalsh(gram.copy())

    def at_once(_: Gram) -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda _: blas.eigvalsh(gram.copy()), range(cores)))

    times: dict[str, list[float]] = {"one": [], "all": []}
    for _ in range(rounds):
        with threadpool_limits(cores):
            times["one"].append(_in_turns({"one": one_at_a_time}, gram, 1)["one"])
        with threadpool_limits(1):
            times["all"].append(_in_turns({"all": at_once}, gram, 1)["all"])
    return median(times["one"]) / median(times["all"])


def _in_blocks(columns: int) -> Solve:
    def solve(gram: Gram) -> object:
        before, blas._FLOAT64_BLOCK = blas._FLOAT64_BLOCK, columns  # pyright: ignore[reportPrivateUsage]
        try:
            return blas.eigvalsh(gram)
        finally:
            blas._FLOAT64_BLOCK = before  # pyright: ignore[reportPrivateUsage]

    return solve


def _two_stages() -> Solve:
    """Call LAPACK's routine in the OpenBLAS of SciPy, which does not list it among those for others."""
    found = next(info["filepath"] for info in threadpool_info() if "scipy.libs" in info["filepath"])
    routine = ctypes.CDLL(found).scipy_dsyev_2stage_

    def solve(gram: Gram) -> object:
        n, info = gram.shape[0], ctypes.c_int(0)
        values = np.empty(n)

        def call(work: Gram, length: int) -> None:
            sizes = [ctypes.byref(ctypes.c_int(n)), ctypes.byref(ctypes.c_int(length))]
            routine(
                b"N", b"L", sizes[0], ctypes.c_void_p(gram.ctypes.data), sizes[0], ctypes.c_void_p(values.ctypes.data),
                ctypes.c_void_p(work.ctypes.data), sizes[1], ctypes.byref(info), 1, 1,
            )  # fmt: skip

        query = np.empty(1)
        call(query, -1)
        call(np.empty(int(query[0])), int(query[0]))
        assert info.value == 0
        return values

    return solve


if __name__ == "__main__":
    main()
