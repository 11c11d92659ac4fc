"""Products of noise: exponents that were derived elsewhere, and simulated matrices."""

import numpy as np
import pytest

from specdiag.spectra.product_null import mass_above, product_quantiles, upper_edge
from specdiag.spectra.tails import hill


@pytest.mark.parametrize(
    ("n", "width", "alpha", "digits"),
    [
        (64, 576, 3.6118, 5e-5), (64, 768, 4.02142, 5e-6), (64, 1024, 4.4911, 5e-5), (64, 4096, 7.95534, 5e-6),
        (128, 1024, 3.4210, 5e-5), (128, 2048, 4.4375, 5e-5), (128, 4096, 5.85647, 5e-6), (128, 8192, 7.8502, 5e-5),
    ],
)  # fmt: skip
def test_exponents_of_heads(n, width, alpha, digits):
    assert hill(product_quantiles(n, (n / width, n / width))).alpha == pytest.approx(alpha, abs=digits)


@pytest.mark.parametrize(
    ("width", "hidden", "alpha"), [(576, 1536, 1.908046), (768, 3072, 1.969929), (4096, 11008, 1.906367)]
)
def test_exponents_of_down_times_up(width, hidden, alpha):
    assert hill(product_quantiles(width, (width / hidden, 1.0))).alpha == pytest.approx(alpha, abs=5e-7)


def simulated(n, first, second, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, first)), rng.standard_normal((n, second))
    core = np.linalg.qr(x.T, mode="r") @ np.linalg.qr(y.T, mode="r").T
    return np.linalg.svd(core, compute_uv=False)[::-1] ** 2 / (first * second)


def test_the_draw_of_the_check_cases():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 768)), rng.standard_normal((64, 768))
    eigenvalues = np.linalg.svd(x.T @ y, compute_uv=False)[63::-1] ** 2
    assert hill(eigenvalues).alpha == pytest.approx(4.038228, abs=5e-7)
    assert eigenvalues[-1] / 768**2 == pytest.approx(1.984448, abs=5e-7)


@pytest.mark.parametrize(("first", "second"), [(640, 640), (200, 100), (100, 100)])
def test_quantiles_lie_where_simulated_eigenvalues_do(first, second):
    ratios = (100 / first, 100 / second)
    draws = np.mean([simulated(100, first, second, seed) for seed in range(20)], axis=0)
    quantiles = product_quantiles(100, ratios)
    assert quantiles.mean() == pytest.approx(1, abs=0.02)  # E tr XX'YY'/n
    assert quantiles[20:] == pytest.approx(draws[20:], rel=0.1)


def test_the_law_has_mass_one_and_ends_at_its_edge():
    ratios = (0.1, 0.3)
    edge = upper_edge(ratios)
    assert mass_above(np.array([edge * (1 - 1e-9), 1e-6]), ratios) == pytest.approx([0, 1], abs=1e-9)
    quantiles = product_quantiles(1001, ratios)
    assert (np.diff(quantiles) > 0).all()
    assert quantiles[-1] < edge
    with pytest.raises(ValueError, match="read-only"):
        quantiles[0] = 1
