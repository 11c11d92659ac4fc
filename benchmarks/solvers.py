"""SciPy's eigensolver against torch's, by size: from where on the second is faster, and what the table loses here.

One BLAS thread, Gram matrices of noise, the two in turns, medians.

    python benchmarks/solvers.py                             # two minutes; a row for specdiag/spectra/solvers.py
    OPENBLAS_CORETYPE=SkylakeX python benchmarks/solvers.py  # another kernel of the same processor
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from specdiag.resources import openblas_kernel, processor_vendor
from specdiag.spectra.blas import eigvalsh, syrk
from specdiag.spectra.eigenvalues import torch_eigvalsh
from specdiag.spectra.solvers import crossing, torch_solves

SIZES = (256, 512, 1024, 1536, 2048, 2560, 3072, 4096)
DTYPES: tuple[Literal["float32", "float64"], ...] = ("float32", "float64")


def main() -> None:
    """Print both times at each size, the loss of the table, and a row for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of sizes up to 1024; larger ones take fewer")
    parser.add_argument("--largest", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [n for n in SIZES if n <= options.largest]
    row = crossing()
    print(f"{processor_vendor()}, OpenBLAS kernel {openblas_kernel()}; the table's row: {row}\n")
    print(f"{'dtype':8} {'n':>5} {'SciPy ms':>10} {'torch ms':>10} {'table':>6} {'loss':>6}")
    with threadpool_limits(1):
        found = {dtype: [_line(dtype, n, options.rounds) for n in sizes] for dtype in DTYPES}
    crossings = {dtype: _crossing(sizes, ratios) for dtype, ratios in found.items()}
    print(f"\ntorch is faster from: {crossings}")


def _line(dtype: Literal["float32", "float64"], n: int, rounds: int) -> float:
    """Time both at one size, print them, and give the ratio of torch's time to SciPy's."""
    values = np.random.default_rng(n).standard_normal((n, n)).astype(dtype)
    gram = np.zeros((n, n), dtype)
    syrk(values, gram, tall=True)
    times: dict[str, list[float]] = {"scipy": [], "torch": []}
    solvers: dict[str, Callable[[NDArray[Any]], object]] = {"scipy": eigvalsh, "torch": torch_eigvalsh}
    for _ in range(rounds if n <= 1024 else 3):
        for name, solve in solvers.items():
            copied = gram.copy()  # both destroy it, or may
            begin = time.perf_counter()
            solve(copied)
            times[name].append(time.perf_counter() - begin)
    scipy, other = median(times["scipy"]), median(times["torch"])
    chosen = other if torch_solves(n, dtype) else scipy
    name = "torch" if torch_solves(n, dtype) else "SciPy"
    print(
        f"{dtype:8} {n:5} {scipy * 1e3:10.1f} {other * 1e3:10.1f} {name:>6} {chosen / min(scipy, other) - 1:6.1%}",
        flush=True,
    )
    return other / scipy


def _crossing(sizes: list[int], ratios: list[float]) -> int | None:
    """Interpolate the size from which on the ratio stays below 1; None where it does not."""
    above = [i for i, ratio in enumerate(ratios) if ratio >= 1]
    if not above:
        return sizes[0]
    last = above[-1]
    if last + 1 == len(sizes):
        return None
    share = (ratios[last] - 1) / (ratios[last] - ratios[last + 1])
    return round(sizes[last] + share * (sizes[last + 1] - sizes[last]))


if __name__ == "__main__":
    main()
