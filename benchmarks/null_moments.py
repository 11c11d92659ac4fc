"""Hold the moments of noise in `specdiag.spectra.null` and the rule of `mp_spikes` against simulation.

Eigenvalues of Gaussian matrices come from their bidiagonal form, which is exact. Each row of the table is one shape:
mean and standard deviation of z (0 and 1 are right), error of alpha_null under other rules in percent, and how many of
1000 matrices have a spike. Ten minutes on one core:

    OMP_NUM_THREADS=1 python benchmarks/null_moments.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

from specdiag.spectra.metrics import mp_edge, mp_spikes
from specdiag.spectra.null import null_moments
from specdiag.spectra.tails import Tail, hill, hill_paper

SEED = 20261129
SIZES = (50, 64, 65, 127, 256, 511, 1024, 2047, 4096)
ASPECTS = (1.0, 1.02, 4 / 3, 8 / 3, 8.0, 64.0)
WIDE_ASPECTS = (1.0, 8 / 3, 64.0)
"""From `WIDE_FROM` rows on."""
WIDE_FROM = 2047
FEWEST, MOST, WORK = 600, 12_000, 2e7
OUT = Path(__file__).parent / "results" / "null_moments.json"

Fit = Callable[[NDArray[np.float64]], Tail]
RULES: Mapping[str, Fit] = {
    "hill 0.5": hill,
    "hill-paper 0.5": hill_paper,
    "hill 0.75": partial(hill, tail_fraction=0.75),
    "hill 0.25": partial(hill, tail_fraction=0.25),
    "hill 0.1": partial(hill, tail_fraction=0.1),
}


def eigenvalues(n: int, m: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the eigenvalues of W W^T for an n x m matrix of standard normal entries, ascending.

    The bidiagonal form has chi variables of m, ..., m - n + 1 degrees of freedom on the diagonal and of n - 1, ..., 1
    beside it (Dumitriu and Edelman 2002, Journal of Mathematical Physics 43).
    """
    diagonal = rng.chisquare(np.arange(m, m - n, -1.0))
    beside = rng.chisquare(np.arange(n - 1, 0, -1.0))
    squares = diagonal + np.concatenate([[0.0], beside])
    found = eigvalsh_tridiagonal(squares, np.sqrt(diagonal[:-1] * beside), check_finite=False, lapack_driver="sterf")
    return np.asarray(found)


def shapes() -> Iterator[tuple[int, int]]:
    """Give the shapes, n x m with n <= m."""
    for n in SIZES:
        yield from ((n, round(n * aspect)) for aspect in (ASPECTS if n < WIDE_FROM else WIDE_ASPECTS))


def row(n: int, m: int) -> dict[str, float]:
    """Simulate one shape."""
    rng = np.random.default_rng([SEED, n, m])
    count = int(np.clip(WORK / n**1.7, FEWEST, MOST))
    found, spiked = np.empty((count, len(RULES))), 0
    for i in range(count):
        values = eigenvalues(n, m, rng)
        found[i] = [fit(values).alpha for fit in RULES.values()]
        spiked += mp_spikes(values, (n, m), mp_edge(values, (n, m))) > 0
    moments = [null_moments((n, m), fit) for fit in RULES.values()]
    z = (found[:, 0] - moments[0][0]) / moments[0][1]
    errors = {
        f"{name}, %": round(100 * float(mean / alphas.mean() - 1), 3)
        for name, alphas, (mean, _) in zip(RULES, found.T, moments, strict=True)
    }
    return {
        "n": n,
        "m": m,
        "draws": count,
        "z mean": round(float(z.mean()), 3),
        "z sd": round(float(z.std(ddof=1)), 3),
        **errors,
        "spiked of 1000": round(1000 * spiked / count, 2),
    }


def main() -> None:
    """Simulate every shape, print a row each and keep them."""
    rows: list[dict[str, float]] = []
    for n, m in shapes():
        rows.append(row(n, m))
        print(json.dumps(rows[-1]), flush=True)
    OUT.write_text(json.dumps({"seed": SEED, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
