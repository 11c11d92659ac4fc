import numpy as np
import pytest
from helpers import esd, lcg, with_singular_values

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
