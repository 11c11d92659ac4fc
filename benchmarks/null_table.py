"""Simulate the Hill exponent of Gaussian matrices and write specdiag/spectra/null_table.json.

For each aspect ratio m/n the mean is modelled as limit + c/n and the standard deviation as d/n; c and d are averages
over the sizes below. About a minute on two cores:

    python benchmarks/null_table.py
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from specdiag.spectra.null import mp_alpha
from specdiag.spectra.tails import hill

ASPECTS = [1, 4 / 3, 1.5, 2, 8 / 3, 3, 4, 6, 8, 16, 32, 64]
DRAWS = {64: 4000, 128: 1500, 256: 400}
SEED = 20251122
OUT = Path(__file__).parents[1] / "specdiag" / "spectra" / "null_table.json"


def draw(n: int, m: int, count: int) -> np.ndarray:
    """Hill exponents of `count` Gaussian n x m matrices, shape [count]."""
    rng = np.random.default_rng([SEED, n, m])
    with threadpool_limits(1):
        return np.array(
            [hill(np.linalg.eigvalsh((w := rng.standard_normal((n, m))) @ w.T)).alpha for _ in range(count)]
        )


def row(aspect: float) -> dict[str, float]:
    """c and d of one aspect ratio, weighted by the precision of each size."""
    shifts, scales, weights = [], [], []
    for n, count in DRAWS.items():
        m = round(n * aspect)
        count = max(200, int(count / max(1, aspect / 4)))
        alphas = draw(n, m, count)
        shifts.append(n * (alphas.mean() - mp_alpha(n / m)))
        scales.append(n * alphas.std(ddof=1))
        weights.append(count)
    return {
        "aspect": aspect,
        "mean_shift": float(np.average(shifts, weights=weights)),
        "sd_scale": float(np.average(scales, weights=weights)),
    }


def main() -> None:
    """Simulate every aspect ratio and write the table."""
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(row, ASPECTS))
    table = {key: [round(r[key], 6) for r in rows] for key in rows[0]}
    OUT.write_text(json.dumps({"seed": SEED, "draws": {str(k): v for k, v in DRAWS.items()}, **table}, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
