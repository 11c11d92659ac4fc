"""The fit test finds the law that points were drawn from, and says where it cannot tell."""

import numpy as np
import pytest
from helpers import gaussian_eigenvalues
from scipy import stats

from specdiag.spectra.fit_test import candidates, compare_laws, pooled_ratios, power_law_p
from specdiag.spectra.laws import Bulk
from specdiag.spectra.metrics import mp_edge

DRAWS = {
    "power-law": lambda rng, k: (1 - rng.random(k)) ** (-1 / 1.5),
    "exponential": lambda rng, k: 1 + rng.exponential(2, k),
    "lognormal": lambda rng, k: np.exp(stats.truncnorm(-1, np.inf, 0.5, 0.5).rvs(k, random_state=rng)),
}


def drawn(law, k, seed=0):
    return np.sort(DRAWS[law](np.random.default_rng(seed), k))


def noise(shape, seed=0, spike=1.0):
    """The upper half of the eigenvalues of a random matrix, and the bulk by their median."""
    eigenvalues = gaussian_eigenvalues(*shape, np.random.default_rng(seed), spike)
    n, m = shape
    variance = mp_edge(eigenvalues, shape) / (n**0.5 + m**0.5) ** 2
    return eigenvalues[n // 2 :], Bulk(shape, variance)


@pytest.mark.parametrize("law", DRAWS)
def test_the_law_of_a_large_sample_is_found(law):
    points = drawn(law, 4000)
    found = compare_laws(points, points[0])
    assert found.best == law
    assert found.candidates == (law,)
    assert (power_law_p(found.ratios) > 0.05) == (law == "power-law")


def test_a_cut_off_is_found():
    rng = np.random.default_rng(0)
    pareto = (1 - rng.random(40_000)) ** (-1 / 0.4)
    points = np.sort(pareto[rng.random(40_000) < np.exp(-0.01 * (pareto - 1))])
    found = compare_laws(points, 1.0)
    assert found.best == "truncated-power-law"
    assert found.laws[found.best].parameters == pytest.approx({"alpha": 1.4, "rate": 0.01}, rel=0.1)


@pytest.mark.parametrize("shape", [(512, 512), (300, 1200)])
@pytest.mark.parametrize("spike", [1.0, 8.0])
def test_noise_is_found(shape, spike):
    points, bulk = noise(shape, spike=spike)
    found = compare_laws(points, points[0], bulk)
    assert found.best == "mp-bulk"
    assert found.laws["mp-bulk"].parameters["spikes"] == (spike > 1)


def test_few_points_do_not_tell():
    points = drawn("lognormal", 60)
    found = compare_laws(points, points[0])
    assert found.best is None
    assert len(found.candidates) > 1
    likelihoods = [found.laws[name].log_likelihood for name in found.candidates]
    assert likelihoods == sorted(likelihoods, reverse=True)


def test_a_ratio_and_its_p():
    points = drawn("exponential", 300)
    found = compare_laws(points, points[0])
    differences = found.laws["lognormal"].log_densities - found.laws["exponential"].log_densities
    ratio = found.compare("lognormal", "exponential")
    z = differences.mean() / (differences.std() / 300**0.5)
    assert ratio.value == pytest.approx(differences.sum())
    assert ratio.normalised == pytest.approx(z)
    assert ratio.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert found.compare("exponential", "lognormal") == pytest.approx((-ratio.value, ratio.spread, ratio.p))
    nested = found.compare("truncated-power-law", "power-law")
    assert nested.value > 0
    assert nested.p == pytest.approx(stats.chi2.sf(2 * nested.value, 1))
    with pytest.raises(KeyError):
        found.compare("mp-bulk", "power-law")


def test_a_law_that_any_likelier_one_beats_is_no_candidate():
    """The likeliest need not be the one that tells: a wide spread hides it."""
    points = drawn("power-law", 300)
    ratios = dict(compare_laws(points, points[0]).ratios)
    assert candidates(ratios) == ("power-law",)
    wide = ratios["power-law", "exponential"]._replace(value=-9.0, spread=9.0, p=0.3)
    ratios["power-law", "exponential"] = wide
    assert candidates(ratios) == ("exponential", "power-law")
    ratios["power-law", "lognormal"] = ratios["power-law", "lognormal"]._replace(value=-4.0, p=0.01)
    ratios["exponential", "lognormal"] = ratios["exponential", "lognormal"]._replace(value=5.0, p=0.4)
    assert candidates(ratios) == ("exponential", "lognormal")
    assert power_law_p(ratios) == 0.01


def test_several_tails_tell_more():
    parts = [compare_laws((points := drawn("lognormal", 150, seed)), points[0]) for seed in range(12)]
    ratios = pooled_ratios(part.ratios for part in parts)
    assert sum(part.best is None for part in parts) > 6
    assert candidates(ratios) == ("lognormal",)
    pair = ("exponential", "lognormal")
    values = [part.ratios[pair] for part in parts]
    assert ratios[pair].value == pytest.approx(sum(ratio.value for ratio in values))
    assert ratios[pair].spread == pytest.approx(np.hypot.reduce([ratio.spread for ratio in values]))
    assert ratios[pair].p == pytest.approx(2 * stats.norm.sf(abs(ratios[pair].normalised)))
    nested = ratios["power-law", "truncated-power-law"]
    assert nested.p == pytest.approx(stats.chi2.sf(-2 * nested.value, 12))
    assert pooled_ratios([]) == {}


def test_laws_that_a_tail_lacks_are_not_pooled():
    tail, bulk = noise((200, 200))
    both = pooled_ratios([compare_laws(tail, tail[0], bulk).ratios, compare_laws(tail, tail[0]).ratios])
    assert not any("mp-bulk" in pair for pair in both)
    assert len(both) == 6


def test_the_stated_spread_is_too_wide_for_noise():
    """Eigenvalues repel: of 60 random matrices the ratios lie 3 to 6 times closer together than independent points'."""
    found = []
    for seed in range(60):
        tail, bulk = noise((256, 256), seed)
        found.append(compare_laws(tail, tail[0], bulk))
    for pair in (("exponential", "lognormal"), ("power-law", "exponential"), ("mp-bulk", "lognormal")):
        ratios = [one.compare(*pair) for one in found]
        assert np.mean([ratio.spread for ratio in ratios]) > 3 * np.std([ratio.value for ratio in ratios])
