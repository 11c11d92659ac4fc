"""Laws of a tail: their densities and likeliest parameters, against scipy, mpmath and the package `powerlaw`."""

import contextlib
import io
import warnings

import mpmath
import numpy as np
import pytest
from helpers import gaussian_eigenvalues
from scipy import stats
from scipy.integrate import quad

from specdiag.spectra import truncated_power_law
from specdiag.spectra.fit_test import compare_laws
from specdiag.spectra.laws import Bulk, bulk_with_spikes, exponential, lognormal, power_law, truncated
from specdiag.spectra.tails import hill


def samples(k=400):
    """Points above 1, ascending, the first of them 1: of every law, near its limits, with ties, wide and narrow."""
    rng = np.random.default_rng(0)
    found = {
        "pareto": (1 - rng.random(k)) ** (-1 / 1.5),
        "steep pareto": (1 - rng.random(k)) ** (-1 / 40),
        "exponential": 1 + rng.exponential(2, k),
        "lognormal": np.exp(np.abs(rng.standard_normal(k))),
        "wide lognormal": np.exp(np.abs(rng.standard_normal(k)) * 8),
        "hump": np.exp(3 + 0.2 * rng.standard_normal(k)),
        "narrow": 1 + 1e-3 * rng.random(k),
        "ties": 1 + np.round(rng.exponential(2, k), 1),
    }
    return {name: np.sort(x) / x.min() for name, x in found.items()}


POINTS = samples()


@pytest.mark.parametrize("a", [0, 1e-6, 0.3, 0.999999, 1, 1.000001, 1.5, 2, 3.7, 10, 100, 5000])
def test_the_norm_of_the_truncated_power_law(a):
    with mpmath.workdps(40):
        for b in (1e-18, 1e-12, 1e-6, 1e-3, 0.1, 1, 10, 1e3, 1e6):
            found = truncated_power_law.moments(a, b)
            start = mpmath.exp(b)
            norm = start * mpmath.expint(mpmath.mpf(a) + 1, b)
            assert found.log_norm == pytest.approx(float(mpmath.log(norm)), abs=1e-11)
            assert found.excess == pytest.approx(float(start * mpmath.expint(a, b) / norm - 1), rel=1e-10)


def reference(name, parameters, x):
    """ln of the density of a law above 1, by other code."""
    if name == "power-law":
        return stats.pareto.logpdf(x, parameters["alpha"] - 1)
    if name == "exponential":
        return stats.expon.logpdf(x, loc=1, scale=1 / parameters["rate"])
    if name == "lognormal":
        law = stats.lognorm(parameters["sigma"], scale=np.exp(parameters["mu"]))
        return law.logpdf(x) - law.logsf(1)
    alpha, rate = parameters["alpha"], parameters["rate"]
    with mpmath.workdps(30):
        norm = float(mpmath.log(mpmath.expint(alpha, rate)))
    return -alpha * np.log(x) - rate * x - norm


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("fit", [power_law, truncated, exponential, lognormal], ids=lambda fit: fit.__name__)
def test_densities_and_likeliest_parameters(fit, name):
    points = POINTS[name]
    law = fit(points, 1.0)
    parameters = dict(law.parameters)
    if not np.isfinite(parameters.get("mu", 0)) or parameters.get("rate") == 0:
        assert law.log_densities == pytest.approx(power_law(points, 1.0).log_densities, rel=1e-9, abs=1e-9)
        return
    assert law.log_densities == pytest.approx(reference(law.name, parameters, points), rel=1e-7, abs=1e-7)
    for parameter, value in parameters.items():
        for factor in (0.97, 1.03):
            other = parameters | {parameter: value * factor}
            if parameter != "alpha" or other["alpha"] >= 1:
                assert reference(law.name, other, points).sum() < law.log_likelihood


def test_the_limits_of_the_larger_laws():
    """Whose tail is as wide as that of a power law has no cut-off, and its lognormal is the power law."""
    assert truncated(POINTS["wide lognormal"], 1.0).parameters["alpha"] > 1
    wider = np.exp(np.sort(np.random.default_rng(0).weibull(0.6, 400)))
    for fit, parameter, limit in ((truncated, "rate", 0.0), (lognormal, "mu", -np.inf)):
        law = fit(wider / wider[0], 1.0)
        assert law.parameters[parameter] == limit
        assert law.log_likelihood == pytest.approx(power_law(wider / wider[0], 1.0).log_likelihood, abs=1e-9)


def test_the_power_law_is_hill():
    eigenvalues = gaussian_eigenvalues(101, 300, np.random.default_rng(0))
    tail = hill(eigenvalues)
    assert power_law(eigenvalues[-tail.k :], tail.xmin).parameters["alpha"] == pytest.approx(tail.alpha, rel=1e-12)


@pytest.mark.parametrize("shape", [(100, 100), (100, 400)])
@pytest.mark.parametrize("spike", [1.0, 12.0])
def test_noise_with_spikes_has_the_mass_1(shape, spike):
    """The density between and beyond the points of a tail, which is fitted with the points where it is asked for."""
    n, m = shape
    eigenvalues = gaussian_eigenvalues(n, m, np.random.default_rng(1), spike)
    points = eigenvalues[n // 2 :]
    bulk = Bulk(shape, 1.0)
    law = bulk_with_spikes(points, points[0], bulk)
    assert bulk.edge == pytest.approx((n**0.5 + m**0.5) ** 2)
    assert law.parameters["spikes"] == (points >= bulk.edge).sum()
    low, high, share = (m**0.5 - n**0.5) ** 2, bulk.edge, law.parameters["spikes"] / len(points)

    def marchenko_pastur(x):
        return ((high - x) * (x - low)) ** 0.5 / x

    mass = quad(marchenko_pastur, points[0], high)[0]
    inside = points[points < high]
    assert law.log_densities[: len(inside)] == pytest.approx(
        np.log((1 - share) * marchenko_pastur(inside) / mass), rel=1e-6
    )
    beyond = stats.pareto.logpdf(points[len(inside) :] / high, law.parameters.get("alpha", 2) - 1) - np.log(high)
    if share:
        assert law.log_densities[len(inside) :] == pytest.approx(beyond + np.log(share))
    assert (share > 0) == (spike > 1)


def test_a_spike_at_the_edge_has_no_boundless_density():
    points = np.linspace(150, 300, 60)
    bulk = Bulk((100, 100), points[-1] / 400 / (1 + 1e-9))
    (spike,) = bulk_with_spikes(points, points[0], bulk).log_densities[points >= bulk.edge]
    assert spike < 5


def test_noise_has_no_likelihood_for_a_tail_beyond_or_below_it():
    points = np.linspace(150, 300, 60)
    assert bulk_with_spikes(points, points[0], Bulk((100, 100), 0.1)) is None
    assert bulk_with_spikes(points, points[0], Bulk((100, 10_000), 0.02)) is None


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
@pytest.mark.parametrize("name", POINTS)
def test_a_unit_changes_no_ratio(name, scale):
    points = POINTS[name]
    plain, scaled = compare_laws(points, 1.0), compare_laws(points * scale, scale)
    assert plain.candidates == scaled.candidates
    for pair, ratio in plain.ratios.items():
        assert scaled.ratios[pair].value == pytest.approx(ratio.value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["pareto", "steep pareto", "exponential", "lognormal", "ties"])
def test_against_powerlaw(name):
    """Ours is never less likely than what its optimiser finds, and no more than 1e-4, but for a law at its limit."""
    powerlaw = pytest.importorskip("powerlaw")
    points = POINTS[name]
    found = compare_laws(points, 1.0)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        fit = powerlaw.Fit(points, xmin=1.0, verbose=False)
        theirs = {law: getattr(fit, law.replace("-", "_")) for law in found.laws}
        likelihoods = {law: float(theirs[law].loglikelihoods(points).sum()) for law in theirs}
        compared = {law: fit.distribution_compare(law.replace("-", "_"), "power_law", normalized_ratio=True)
                    for law in found.laws if law != "power-law"}  # fmt: skip
    for law, likelihood in likelihoods.items():
        assert found.laws[law].log_likelihood > likelihood - 1e-6, law
    assert found.laws["power-law"].parameters["alpha"] == pytest.approx(theirs["power-law"].alpha, rel=1e-9)
    assert found.laws["exponential"].parameters["rate"] == pytest.approx(theirs["exponential"].Lambda, rel=1e-3)
    for law, (ratio, p) in compared.items():
        if not np.isfinite(found.laws[law].parameters.get("mu", 0)):
            continue
        assert likelihoods[law] == pytest.approx(found.laws[law].log_likelihood, abs=1e-4)
        ours = found.compare(law, "power-law")
        assert ours.normalised == pytest.approx(ratio, abs=0.01) or abs(ours.value) < 1e-4, law
        assert law == "lognormal" or ours.p == pytest.approx(p, abs=1e-2), law
