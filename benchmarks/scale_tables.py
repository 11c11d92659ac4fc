"""Results of benchmarks/scale.py in Markdown for docs/scale.md, and the cost model fitted to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import measured_models
import numpy as np
from pages import table, update
from scipy.optimize import nnls

from specdiag.analysis.cost import TERMS, terms
from specdiag.text.counts import percent

Results = dict[str, Any]
Fit = dict[str, tuple[float, ...]]

_SEEN = ("60m", "135m", "350m")
_LLAMA = {
    "7B": (32, {(4096, 4096): 4, (4096, 11008): 3}, (32000, 4096)),
    "70B": (80, {(8192, 8192): 2, (1024, 8192): 2, (8192, 28672): 3}, (128256, 8192)),
    "405B": (126, {(16384, 16384): 2, (1024, 16384): 2, (16384, 53248): 3}, (128256, 16384)),
}
"""Layers, matrices of a layer by their sides, and those of embedding and head."""


def fit(rows: list[Results]) -> Fit:
    """Nanoseconds of each term, none negative, by least squares of relative errors."""
    found: Fit = {}
    for dtype in ("float64", "float32"):
        own = [row for row in rows if row["dtype"] == dtype]
        counted = np.array([terms(*sorted((row["n"], row["m"]))) for row in own])
        seconds = np.array([row["seconds"] for row in own])
        weights, _ = nnls(counted / seconds[:, None] / 1e9, np.ones(len(own)))
        found[dtype] = tuple(float(f"{weight:.4g}") for weight in weights)
    return found


def seconds(fitted: Fit, n: int, m: int, dtype: str) -> float:
    """Predicted seconds of a matrix on one core."""
    return float(terms(*sorted((n, m))) @ np.array(fitted[dtype])) / 1e9


def fit_table(results: Results) -> str:
    """Constants, and how far the fit is from what it was fitted to."""
    rows = results["parts"]["calibration"]
    fitted = fit(rows)
    body = [(dtype, *(f"{value:.3g}" for value in fitted[dtype])) for dtype in fitted]
    errors = [seconds(fitted, row["n"], row["m"], row["dtype"]) / row["seconds"] - 1 for row in rows]
    return (
        f"{table(('ns on one core', *('n^2 m', 'n^3', 'n^2', 'n m', 'matrix')), body)}\n\n"
        f"Fitted to {len(rows)} timings of matrices up to {max(r['n'] for r in rows)} x {max(r['m'] for r in rows)}. "
        f"Relative error: {percent(median(map(abs, errors)))} median, {percent(max(map(abs, errors)))} at most."
    )


def models_table(results: Results) -> str:
    """Measured and predicted, seen and unseen."""
    fitted = fit(results["parts"]["calibration"])
    head = ("shapes", "settings", "analysis", "predicted", "error", "whole process", "peak memory")
    body = [
        (
            measured_models.TITLES[row["model"]] + ("" if row["model"] in _SEEN else ", not seen by the fit"),
            row["way"],
            f"{row['seconds']:.1f} s",
            f"{predicted:.1f} s",
            percent(predicted / row["seconds"] - 1, 0, "+"),
            f"{row['process_seconds']:.1f} s",
            f"{row['peak_bytes'] / 2**20:.0f} MiB",
        )
        for row in results["parts"]["models"]
        for predicted in (_of_model(fitted, row["model"], row["way"], row["jobs"]),)
    ]
    return table(head, body)


def _of_model(fitted: Fit, name: str, way: str, workers: int) -> float:
    coarse = name.endswith(measured_models.COARSE)
    shape = measured_models.SHAPES[name.removesuffix(measured_models.COARSE)]
    d, m, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    dtype = "float64" if way == "default" and not coarse else "float32"
    layer = 4 * seconds(fitted, d, d, dtype) + 3 * seconds(fitted, d, m, dtype)
    return layers * layer / workers


def sizes_table(results: Results) -> str:
    """Square matrices beside the floor."""
    part = results["parts"]["sizes"]
    held = {(row["n"], row["dtype"]): row["seconds"] for row in part["rows"]}
    head = ("n x n", *(f"{dtype}: {what}" for dtype in ("float64", "float32") for what in ("seconds", "over floor")))
    body = [
        (
            str(n),
            *(
                text
                for dtype in ("float64", "float32")
                for text in (
                    f"{held[n, dtype]:.3g}",
                    f"{held[n, dtype] / (7 / 3 * n**3 / 1e9 / part['syrk_gflops'][dtype]):.1f}",
                )
            ),
        )
        for n in sorted({n for n, _ in held})
    ]
    rates = ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in part["syrk_gflops"].items())
    return (
        f"{table(head, body)}\n\nOne core. Floor: the time of 7/3 n^3 operations at "
        f"the rate of this core's symmetric updates of 1024 x 4096, {rates}. Larger updates run faster."
    )


def memory_table(results: Results) -> str:
    """Peaks on one worker."""
    base, *rows = results["parts"]["memory"]
    body = [
        (
            row["what"],
            row["dtype"],
            f"{row['seconds']:.0f} s",
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
            f"{(row['peak_bytes'] - base['peak_bytes']) / 2**30:.2f} GiB",
        )
        for row in rows
    ]
    return (
        f"{table(('one worker', '', 'analysis', 'peak', 'above imports'), body)}\n\n"
        f"A process that has imported everything, torch included, holds {base['peak_bytes'] / 2**30:.2f} GiB."
    )


def share_table(results: Results) -> str:
    """Shares of a worker's time."""
    body = [
        (
            row["way"],
            percent(row["blas_seconds"] / row["seconds"]),
            percent(row["hash_seconds"] / row["seconds"], 1),
        )
        for row in results["parts"]["share"]
    ]
    return table(("one worker, LLaMA-135M shapes", "in BLAS and LAPACK", "hashing"), body)


def ranks_table(results: Results) -> str:
    """Two processes beside one."""
    one, two = (results["parts"]["ranks"][count] for count in ("1", "2"))
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    return (
        f"Two processes of one thread, each on its own processor, took {median(two):.1f} s. One process took "
        f"{median(one):.1f} s for the same (LLaMA-135M shapes, float64). The ratio was {min(ratios):.2f} to "
        f"{max(ratios):.2f} in {len(ratios)} pairs of runs."
    )


def start_table(results: Results) -> str:
    """Small commands, and large reports."""
    saved = results["parts"]["saved"]
    body = [(f"`{name}`", f"{value:.2f} s") for name, value in results["parts"]["start"].items()]
    body += [
        (f"`{name}` from a saved report of {saved['modules']:,} matrices", f"{value:.2f} s")
        for name, value in saved["seconds"].items()
    ]
    return table(("whole process", "median"), body)


def forecast_table(results: Results) -> str:
    """Core-hours of large models by the cost model: arithmetic."""
    fitted = fit(results["parts"]["calibration"])
    body: list[tuple[str, ...]] = []
    for name, (layers, matrices, ends) in _LLAMA.items():
        cells: list[str] = []
        for dtype in ("float64", "float32"):
            of_layers = layers * sum(count * seconds(fitted, *shape, dtype) for shape, count in matrices.items())
            hours = (of_layers + 2 * seconds(fitted, *ends, dtype)) / 3600
            cells.append(f"{hours:.2g}")
        body.append((f"LLaMA {name}, embedding and head included", *cells))
    return (
        f"{table(('core-hours', 'default', '--dtype float32'), body)}\n\n"
        "Estimates, not measurements: the cost model far outside of its fitted sizes. It is 15 % too low for the 7B "
        "layer above. Divide by the number of cores."
    )


SECTIONS: Mapping[str, tuple[tuple[str, ...], Callable[[Results], str]]] = {
    "fit": (("calibration",), fit_table),
    "models": (("calibration", "models"), models_table),
    "sizes": (("sizes",), sizes_table),
    "share": (("share",), share_table),
    "memory": (("memory",), memory_table),
    "ranks": (("ranks",), ranks_table),
    "start": (("start", "saved"), start_table),
    "forecast": (("calibration",), forecast_table),
}
"""By name, what each is made of."""


def sections(results: Results) -> dict[str, str]:
    """Those whose parts have been measured."""
    return {
        name: make(results) for name, (needed, make) in SECTIONS.items() if all(n in results["parts"] for n in needed)
    }


def update_docs(path: Path, source: Path, *, check: bool) -> int:
    """Put the figures between the markers, or with `check` say whether they stand there; an exit code."""
    results = json.loads(source.read_text())
    found = sections(results)
    print(
        {dtype: dict(zip(TERMS, values, strict=True)) for dtype, values in fit(results["parts"]["calibration"]).items()}
    )
    return update(path, found, source, "benchmarks/scale.py --docs", check=check)
