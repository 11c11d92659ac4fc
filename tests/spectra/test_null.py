import numpy as np
import pytest
from helpers import esd
from scipy.stats import kstest

from specdiag.spectra import null
from specdiag.spectra.tails import hill, hill_paper

# q, alpha limit, median, simulated mean and sd at n = 512 (code form), mean of the paper's form
SIMULATED = [
    (1, 2.12168, 0.65278, 2.1257, 0.0080, 2.1155),
    (1 / 2, 2.70584, 0.83047, 2.7109, 0.0105, 2.6963),
    (0.375, 2.99099, 0.87345, 2.9978, 0.0129, 2.9818),
    (1 / 3, 3.11755, 0.88768, 3.1240, 0.0147, 3.1064),
    (1 / 4, 3.45459, 0.91600, 3.4610, 0.0153, 3.4422),
    (1 / 6, 4.00892, 0.94416, 4.0213, 0.0184, 3.9972),
    (1 / 8, 4.46992, 0.95817, 4.4777, 0.0224, 4.4510),
]


@pytest.mark.parametrize(("q", "limit", "median", "mean", "sd", "paper"), SIMULATED)
def test_against_the_published_simulation(q, limit, median, mean, sd, paper):
    assert null.mp_alpha(q) == pytest.approx(limit, abs=6e-6)
    assert null.mp_median(q) == pytest.approx(median, abs=6e-6)
    shape = (512, round(512 / q))
    assert null.alpha_null(hill, shape) == pytest.approx(mean, rel=0.005)
    assert null.alpha_null(hill_paper, shape) == pytest.approx(paper, rel=0.005)
    moments = null.null_moments(shape)
    assert moments is not None
    assert moments[0] == pytest.approx(mean, abs=0.006)
    assert moments[1] == pytest.approx(sd, rel=0.25)  # the published sd is of 40 to 200 draws


def test_square_limit_is_the_quadrature():
    assert null.mp_alpha(1.0) == pytest.approx(null.SQUARE_LIMIT, abs=1e-8)
    assert null.mp_alpha(1.0) == pytest.approx(2.12168028, abs=5e-9)


def test_quantiles_follow_the_law():
    rng = np.random.default_rng(0)
    for n, m in ((300, 300), (200, 800)):
        eigenvalues = esd(rng.standard_normal((n, m))) / m
        assert np.abs(eigenvalues - null.mp_quantiles(n, n / m)).max() < 0.12
        assert kstest(eigenvalues, null.mp_quantiles(4001, n / m)).statistic < 0.02


def test_twenty_draws():
    rng = np.random.default_rng(1)
    alphas = [hill(esd(rng.standard_normal((256, 256)))).alpha for _ in range(20)]
    assert np.mean(alphas) == pytest.approx(2.128, abs=0.01)
    assert np.std([null.z_score(a, (256, 256)) for a in alphas]) == pytest.approx(1.0, abs=0.6)


def test_orientation_does_not_matter():
    assert null.alpha_null(hill, (100, 300)) == null.alpha_null(hill, (300, 100))
    assert null.z_score(3.0, (100, 300)) == null.z_score(3.0, (300, 100))


def test_uncovered_shapes_have_no_z():
    assert null.z_score(2.0, (32, 32)) is None
    assert null.z_score(2.0, (64, 64 * 65)) is None
    assert null.z_score(2.0, (64, 64 * 64)) is not None


@pytest.mark.parametrize(("shape", "slices"), [((16, 16), 64), ((128, 128), 5), ((64, 128), 9)])
def test_pooled_slices(shape, slices):
    rng = np.random.default_rng(0)
    drawn = [
        hill(np.sort(np.concatenate([esd(rng.standard_normal(shape)) for _ in range(slices)]))).alpha for _ in range(20)
    ]
    assert null.alpha_null(hill, shape, slices) == pytest.approx(np.mean(drawn), rel=0.02)
