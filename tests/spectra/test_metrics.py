import numpy as np
import pytest
from helpers import esd, gaussian_eigenvalues, lcg, with_singular_values

from specdiag.spectra import metrics
from specdiag.spectra.tails import hill, ks_optimal


def test_weightwatcher_values_of_an_lcg_matrix():
    eigenvalues = esd(lcg(64, 96, 1))
    fit = ks_optimal(eigenvalues)
    assert eigenvalues.sum() == pytest.approx(514.3407615942)
    assert np.log10(eigenvalues.sum()) == pytest.approx(2.7112509436)
    assert eigenvalues[-1] == pytest.approx(24.5726604342)
    assert np.log10(eigenvalues[-1]) == pytest.approx(1.3904521792)
    assert fit.alpha == pytest.approx(4.3618019024)
    assert (fit.alpha - 1) / fit.k**0.5 == pytest.approx(0.7923843073)
    assert fit.alpha * np.log10(eigenvalues[-1]) == pytest.approx(6.0648769606)
    assert metrics.log_alpha_norm(eigenvalues, fit.alpha) == pytest.approx(6.7594061342)
    assert metrics.stable_rank(eigenvalues) == pytest.approx(20.9314234807)
    assert metrics.entropy(eigenvalues, 64) == pytest.approx(0.9216870726)
    assert metrics.detx_k(eigenvalues) == 51
    scaled = eigenvalues / eigenvalues.mean()
    assert eigenvalues[13] == pytest.approx(1.9446674771)
    assert np.log(scaled[14:]).sum() == pytest.approx(0.9595, abs=1e-4)
    assert np.log(scaled[13:]).sum() == pytest.approx(-0.4594, abs=1e-4)
    assert np.linalg.matrix_rank(lcg(64, 96, 1)) == 64
    # alphahat of the AlphaDecay code: softplus of the Hill exponent times log10 lambda_max.
    weighted = hill(eigenvalues).alpha * np.log10(eigenvalues[-1])
    assert weighted == pytest.approx(3.4672690541)
    assert np.log1p(np.exp(weighted)) == pytest.approx(3.4979942881)


def test_detx_on_many_eigenvalues_does_not_overflow():
    eigenvalues = np.sort(np.random.default_rng(0).pareto(1.2, 20_000) + 1e-3)
    k = metrics.detx_k(eigenvalues)
    logs = np.log(np.sort(eigenvalues)[::-1] / eigenvalues.mean())
    assert logs[:k].sum() < 0 <= logs[: k - 1].sum()


def test_log_alpha_norm_of_huge_exponents():
    eigenvalues = np.array([1e-5, 1e3, 1e8])
    assert metrics.log_alpha_norm(eigenvalues, 100.0) == pytest.approx(800.0)


def test_ranks_of_a_projection():
    eigenvalues = esd(np.eye(10, 30) * 3.0)
    assert metrics.stable_rank(eigenvalues) == pytest.approx(10)
    assert metrics.effective_rank(eigenvalues) == pytest.approx(10)
    assert metrics.entropy(eigenvalues, 10) == pytest.approx(1, abs=1e-6)
    assert metrics.entropy(np.array([0.0, 1.0]), 1) is None


def test_mp_edge_finds_the_bulk_and_the_spikes():
    rng = np.random.default_rng(0)
    w = 0.02 * rng.standard_normal((300, 700))
    spiked = w + with_singular_values(np.r_[np.zeros(297), 2.0, 2.5, 3.0], (300, 700))
    edge = (0.02 * (300**0.5 + 700**0.5)) ** 2
    for matrix, spikes in ((w, 0), (spiked, 3)):
        eigenvalues = esd(matrix)
        found = metrics.mp_edge(eigenvalues, (300, 700))
        assert found == pytest.approx(edge, rel=0.03)
        assert metrics.mp_spikes(eigenvalues, (300, 700), found) == spikes


def spikes(eigenvalues, shape):
    return metrics.mp_spikes(eigenvalues, shape, metrics.mp_edge(eigenvalues, shape))


@pytest.mark.parametrize("shape", [(50, 50), (65, 130), (128, 1024), (300, 300)])
def test_noise_has_a_spike_once_in_a_thousand(shape):
    """Where the count were Poisson of mean 1.5 per thousand, 14 of 4000 or more would come once in 200 times."""
    rng = np.random.default_rng(0)
    count = 1000 if shape[0] > 128 else 4000
    found = sum(spikes(gaussian_eigenvalues(*shape, rng), shape) > 0 for _ in range(count))
    assert found < 14 * count / 4000 + 3


def test_pooled_slices_of_noise_have_no_more_spikes():
    rng = np.random.default_rng(0)
    pools = ([gaussian_eigenvalues(32, 64, rng) for _ in range(9)] for _ in range(600))
    assert sum(spikes(np.sort(np.concatenate(pool)), (32, 64)) > 0 for pool in pools) < 5


def test_the_median_of_noise_sets_its_variance():
    rng = np.random.default_rng(0)
    for n, m in ((50, 50), (51, 51), (64, 4096)):
        edges = [metrics.mp_edge(gaussian_eigenvalues(n, m, rng), (n, m)) for _ in range(1500)]
        assert np.mean(edges) == pytest.approx((n**0.5 + m**0.5) ** 2, rel=0.004)


def planted(n, m, excess):
    """Variance of the first row whose eigenvalue lies this far above the edge, relative (Baik and Silverstein 2006)."""
    q = n / m
    sought = (1 + excess) * (1 + q**0.5) ** 2
    # spike (1 + q/(spike - 1)) = sought
    b = sought + 1 - q
    return (b + (b**2 - 4 * sought) ** 0.5) / 2


@pytest.mark.parametrize(
    ("n", "m", "excess"), [(64, 64, 0.75), (256, 256, 0.23), (256, 1024, 0.115), (1024, 4096, 0.045)]
)
def test_planted_spikes_are_found(n, m, excess):
    """Each lies at least two of its own standard deviations above the threshold."""
    rng = np.random.default_rng(0)
    spike = planted(n, m, excess)
    assert spike > 1 + (n / m) ** 0.5
    found = [spikes(gaussian_eigenvalues(n, m, rng, spike), (n, m)) for _ in range(60)]
    assert np.mean(np.array(found) == 1) > 0.9


@pytest.mark.parametrize(("n", "percent"), [(64, 20), (1024, 2.3), (4096, 0.85)])
def test_threshold_falls_as_the_width_of_the_edge(n, percent):
    """An eigenvalue a tenth below these distances above the edge is no spike; a tenth above them it is one."""
    edge = 4.0 * n
    for factor, expected in ((0.9, 0), (1.1, 1)):
        assert metrics.mp_spikes(np.array([edge * (1 + factor * percent / 100)]), (n, n), edge) == expected
