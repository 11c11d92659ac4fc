"""The bound on the rounding error of alpha is kept, by one-sided Jacobi rotations in extended precision."""

import numpy as np
import pytest
from helpers import with_singular_values
from hypothesis import given, settings
from hypothesis import strategies as st

from specdiag.spectra.eigenvalues import exact, spectrum
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.tails import hill, ks_optimal

F32, F64 = FLOAT_TYPES["F32"], FLOAT_TYPES["F64"]
FRACTIONS = (0.25, 0.5, 0.75)


def jacobi_eigenvalues(w):
    """Eigenvalues of W W^T, ascending, in np.longdouble: rows are rotated in pairs until all are orthogonal.

    Pairs follow the schedule of a round-robin tournament, so that each round rotates all rows at once.
    """
    rows = np.array(w, np.longdouble)
    if len(rows) % 2:
        rows = np.vstack([rows, np.zeros_like(rows[:1])])
    order = np.arange(len(rows))
    tiny = np.finfo(np.longdouble).eps
    for _ in range(40):
        largest = np.longdouble(0)
        for _ in range(len(rows) - 1):
            half = len(rows) // 2
            first, second = order[:half], order[half:][::-1]
            a, b = rows[first], rows[second]
            aa, bb, ab = (a * a).sum(axis=1), (b * b).sum(axis=1), (a * b).sum(axis=1)
            size = np.sqrt(aa * bb)
            largest = max(largest, (np.abs(ab) / np.where(size > 0, size, 1)).max())
            zeta = (bb - aa) / np.where(ab == 0, 1, 2 * ab)
            tangent = np.where(zeta < 0, -1, 1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
            tangent = np.where(np.abs(ab) > tiny * size, tangent, 0)
            cosine = 1 / np.sqrt(1 + tangent * tangent)
            sine = (cosine * tangent)[:, None]
            rows[first], rows[second] = cosine[:, None] * a - sine * b, sine * a + cosine[:, None] * b
            order = np.concatenate([order[:1], order[-1:], order[1:-1]])
        if largest <= 8 * tiny:
            break
    return np.sort((rows * rows).sum(axis=1))[-len(w) :]


def precise_alpha(eigenvalues, k):
    """PL_Alpha_Hill of the k largest in np.longdouble: what `pl_alpha` is, too, above its threshold."""
    tail = eigenvalues[-k:]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


def matrix(kind, n, m, decades, rng):
    if kind == "noise":
        return rng.standard_normal((n, m))
    if kind == "equal":
        return with_singular_values(1 + 10.0**-decades * rng.random(n), (n, m), int(rng.integers(2**31)))
    if kind == "decades":
        return with_singular_values(np.logspace(0, -decades, n), (n, m), int(rng.integers(2**31)))
    if kind == "rows":
        return rng.standard_normal((n, m)) * np.logspace(0, -decades, n)[:, None]
    return rng.standard_normal((n, m)) + 10**decades * np.outer(rng.standard_normal(n), np.ones(m)) / (n * m) ** 0.5


def test_the_oracle_knows_a_spectrum():
    """A Hadamard matrix turns rows of known lengths, all powers of two: nothing is rounded but by the oracle."""
    hadamard = np.ones((1, 1))
    while len(hadamard) < 64:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    squares = 4.0 ** -np.arange(8).repeat(8)
    found = jacobi_eigenvalues(hadamard.T @ (np.sqrt(squares)[:, None] * np.eye(64)) @ hadamard)
    assert np.abs(found / (64.0**2 * np.sort(squares)) - 1).max() < 1e4 * np.finfo(np.longdouble).eps


@given(
    kind=st.sampled_from(["noise", "equal", "decades", "rows", "spike"]),
    n=st.integers(50, 64),
    m=st.sampled_from([64, 65, 130, 400]),
    decades=st.floats(0, 6),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20, derandomize=True)
def test_the_true_error_never_exceeds_the_stated_one(kind, n, m, decades, seed):
    stored = matrix(kind, n, m, decades, np.random.default_rng(seed)).astype(np.float32)
    truth = jacobi_eigenvalues(stored)
    routes = [spectrum(stored[None], F32, method=r, dtype=d) for r in ("gram", "svd") for d in ("float32", "float64")]
    for found in (*routes, exact(stored[None], F32)):
        fits = [hill(found.eigenvalues, f) for f in FRACTIONS] if found.eigenvalues[n // 4] > 0 else []
        fits += [ks_optimal(found.eigenvalues)] if found.eigenvalues[0] > found.floor else []
        for fit in fits:
            stated = found.alpha_error(fit.alpha, fit.xmin)
            true = abs(float(fit.alpha - precise_alpha(truth, fit.k)))
            assert true <= stated, (found.method, found.dtype, fit, true, stated)
            if found.is_precise(fit.alpha, fit.xmin):
                assert true <= 1e-4 * fit.alpha


def test_the_bound_follows_from_the_sum_of_logarithms():
    """Moving T = k/(alpha - 1) by k e moves alpha by exactly the bound, which is infinite from (alpha - 1) e = 1 on."""
    found = spectrum(np.random.default_rng(0).standard_normal((1, 64, 200)), F64, dtype="float32")
    for alpha, threshold in (
        (1.5, found.eigenvalues[10]),
        (3.0, found.eigenvalues[32]),
        (400.0, found.eigenvalues[60]),
    ):
        e, k = found.rounding(threshold), 32
        total = k / (alpha - 1)
        assert found.alpha_error(alpha, threshold) == pytest.approx(1 + k / (total - k * e) - alpha, rel=1e-6)
    assert found.alpha_error(1 + (1 + 1e-9) / found.rounding(1.0), 1.0) == np.inf


def test_rounding_grows_with_the_longer_side_and_the_ratio():
    rng = np.random.default_rng(0)
    short, long = (spectrum(rng.standard_normal((1, 60, m)), F64) for m in (100, 1600))
    for found in (short, long):
        top = float(found.eigenvalues[-1])
        assert found.rounding(top / 100) == pytest.approx(100 * found.rounding(top))
    assert long.rounding(float(long.eigenvalues[-1])) == pytest.approx(2 * short.rounding(float(short.eigenvalues[-1])))
    svd = spectrum(rng.standard_normal((1, 60, 100)), F64, method="svd")
    top = float(svd.eigenvalues[-1])
    assert svd.rounding(top / 100) == pytest.approx(10 * svd.rounding(top))
