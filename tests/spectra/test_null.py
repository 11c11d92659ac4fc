"""Moments of Hill exponents over Gaussian matrices, against simulation."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import esd, gaussian_eigenvalues, mp_alpha
from scipy.stats import ks_2samp

import specdiag
from specdiag.spectra.marchenko_pastur import angle_of, count_variance, log_density, mp_median, mp_quantiles
from specdiag.spectra.null import alpha_null, null_moments, z_score
from specdiag.spectra.tails import hill, hill_paper

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "null_moments.json"
ROWS = json.loads(RESULTS.read_text())["rows"]

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


def draws(shape, count, fits, n_slices=1):
    """Exponents of random matrices, shape [count, rules]."""
    rng = np.random.default_rng([*shape, n_slices])
    pooled = (np.concatenate([gaussian_eigenvalues(*shape, rng) for _ in range(n_slices)]) for _ in range(count))
    return np.array([[fit(values).alpha for fit in fits] for values in map(np.sort, pooled)])


@pytest.mark.parametrize(("q", "limit", "median", "mean", "sd", "paper"), SIMULATED)
def test_against_the_published_simulation(q, limit, median, mean, sd, paper):
    assert mp_alpha(q) == pytest.approx(limit, abs=6e-6)
    shape = (512, round(512 / q))
    moments = null_moments(shape)
    assert moments[0] == pytest.approx(mean, abs=0.006)
    assert moments[1] == pytest.approx(sd, rel=0.25)  # the published sd is of 40 to 200 draws
    assert alpha_null(hill_paper, shape) == pytest.approx(paper, abs=0.006)
    assert mp_median(10**6, q) == pytest.approx(median, abs=6e-6)
    assert null_moments((200_001, round(200_001 / q)))[0] == pytest.approx(limit, abs=1e-4)


@pytest.mark.parametrize("shape", [(48, 110), (61, 61)])
def test_bidiagonal_form_is_that_of_whole_matrices(shape):
    rng = np.random.default_rng(0)
    whole = np.array([esd(rng.standard_normal(shape)) for _ in range(500)])
    short = np.array([gaussian_eigenvalues(*shape, rng) for _ in range(500)])
    assert min(ks_2samp(whole[:, j], short[:, j]).pvalue for j in (0, shape[0] // 2, -1)) > 1e-3


@pytest.mark.parametrize("shape", [(71, 71), (71, 72), (90, 240), (64, 6400), (133, 133), (300, 1200)])
def test_z_of_noise_is_standard(shape):
    count = 3000 if shape[0] < 200 else 1000
    z = [z_score(alpha, shape) for alpha in draws(shape, count, [hill])[:, 0]]
    assert abs(np.mean(z)) < 0.1
    assert 0.93 < np.std(z) < 1.07


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['n']}x{row['m']}")
def test_simulation_at_all_sizes_keeps_the_claims(row):
    """Made by benchmarks/null_moments.py; beyond the claims 3 standard errors are left to chance."""
    error = row["draws"] ** -0.5
    assert abs(row["z mean"]) < 0.1 + 3 * error
    assert 0.93 - 3 * error / 2**0.5 < row["z sd"] < 1.07 + 3 * error / 2**0.5
    relative = 300 * error / row["n"]  # the standard deviation of alpha is below 3 alpha/n
    for rule, bound in (("hill 0.5", 0.1), ("hill-paper 0.5", 0.1), ("hill 0.75", 0.1), ("hill 0.25", 0.2)):
        assert abs(row[f"{rule}, %"]) < bound + 3 * relative
    assert abs(row["hill 0.1, %"]) < 0.8 + 9 * relative
    assert row["spiked of 1000"] <= 1.5 + 3 * (1000 / row["draws"]) ** 0.5


def test_rows_are_those_of_the_formulas():
    assert {row["n"] for row in ROWS} >= {64, 65, 511, 4096}
    assert {round(row["m"] / row["n"]) for row in ROWS} >= {1, 3, 8, 64}


RULES = [hill, hill_paper, *(partial(hill, tail_fraction=f) for f in (0.25, 0.75))]


@pytest.mark.parametrize("shape", [(50, 50), (51, 140), (96, 96), (97, 3000)])
def test_moments_under_other_rules(shape):
    found = draws(shape, 2000, RULES)
    for alphas, fit in zip(found.T, RULES, strict=True):
        mean, sd = null_moments(shape, fit)
        assert mean == pytest.approx(alphas.mean(), rel=0.002 + 4 * sd / mean / 2000**0.5)
        assert sd == pytest.approx(alphas.std(), rel=0.06 + 4 / 4000**0.5)


@pytest.mark.parametrize("slices", [(16, 16, 64), (8, 24, 25), (64, 128, 9), (128, 128, 5)])
def test_moments_of_pooled_slices(slices):
    *shape, n_slices = slices
    found = draws(shape, 120, [hill], n_slices)
    mean, sd = null_moments(tuple(shape), hill, n_slices)
    assert mean == pytest.approx(found.mean(), rel=0.002 + 4 * sd / mean / 120**0.5)
    assert sd == pytest.approx(found.std(), rel=0.06 + 4 / 240**0.5)


@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_windows_have_the_null_of_their_pool(fraction):
    rng = np.random.default_rng(0)
    keys = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(40)]
    state = {key: torch.from_numpy(rng.standard_normal((100, 160))) for key in keys}
    report = specdiag.analyze(state, tail="farms", tail_fraction=fraction, device="cpu", jobs=1)
    assert np.mean([r.alpha for r in report]) == pytest.approx(report[keys[0]].alpha_null, rel=0.005)


def test_small_slices_have_a_finite_null():
    for fraction in (0.02, 0.1, 0.5):
        mean, sd = null_moments((1, 64), partial(hill, tail_fraction=fraction), 200)
        assert 1 < mean < np.inf
        assert sd > 0


def test_numbers_of_the_documentation():
    """Null by aspect ratio; how much too wide the standard error of independent eigenvalues is; KS distance of noise."""
    found = [null_moments((384, round(384 * aspect)))[0] for aspect in (1, 4)]
    assert found == pytest.approx([2.13, 3.47], abs=0.006)
    for n, times in ((64, 4), (1024, 11)):
        mean, sd = null_moments((n, n))
        assert (mean - 1) / (n / 2) ** 0.5 / sd == pytest.approx(times, abs=0.5)
    rng = np.random.default_rng(0)
    for shape in ((64, 64), (384, 384), (384, 1536), (256, 4096)):
        distance = np.mean([hill(gaussian_eigenvalues(*shape, rng)).ks for _ in range(40)])
        assert 0.145 < distance < 0.205


def test_typical_eigenvalues_are_the_mean_ones():
    n, m = 60, 90
    rng = np.random.default_rng(0)
    logs = np.mean([np.log(gaussian_eigenvalues(n, m, rng) / m) for _ in range(2000)], axis=0)
    typical = mp_quantiles(n, n / m)
    spacing = [1 / (n * log_density(angle_of(float(value), n / m), n / m)) for value in typical]
    away = (logs - np.log(typical)) / spacing
    assert np.abs(away[3:-3]).max() < 0.06
    assert np.abs(away).max() < 0.15


@pytest.mark.parametrize("shape", [(64, 64), (63, 500)])
def test_variance_of_a_count(shape):
    n, m = shape
    rng = np.random.default_rng(0)
    point = mp_median(n, n / m) * 1.03
    counts = [np.count_nonzero(gaussian_eigenvalues(n, m, rng) > point * m) for _ in range(4000)]
    assert count_variance(angle_of(point, n / m), n, n / m) == pytest.approx(np.var(counts), rel=0.1)


def test_variance_grows_as_the_logarithm():
    """n sd(alpha) = sqrt(a + b ln n), b = ((alpha - 1)^2/(pi rho))^2, rho the density of ln lambda at the median."""
    sizes = np.array([4000, 16000, 64000])
    squares = np.array([(n * null_moments((n, 2 * n))[1]) ** 2 for n in sizes])
    slope = np.diff(squares) / np.diff(np.log(sizes))
    rho = log_density(angle_of(mp_median(10**6, 0.5), 0.5), 0.5)
    assert slope == pytest.approx((mp_alpha(0.5) - 1) ** 4 / (np.pi * rho) ** 2, rel=0.01)


def test_moments_are_plain_numbers():
    """Reports hold nothing else."""
    assert [type(value) for value in (*null_moments((64, 100)), z_score(3.0, (64, 100)), mp_median(64, 0.5))] == [
        float
    ] * 4


def test_orientation_does_not_matter():
    assert alpha_null(hill, (100, 300)) == alpha_null(hill, (300, 100))
    assert z_score(3.0, (100, 300)) == z_score(3.0, (300, 100))


@pytest.mark.parametrize(("law", "excess_kurtosis"), [("uniform", -1.2), ("sign", -2.0), ("laplace", 3.0)])
def test_entries_of_another_law(law, excess_kurtosis):
    """The mean of z moves by -.2 for each unit of excess kurtosis; its spread stays."""
    rng = np.random.default_rng(0)
    draw = {
        "uniform": lambda: rng.uniform(-1, 1, (64, 64)),
        "sign": lambda: rng.choice([-1.0, 1.0], (64, 64)),
        "laplace": lambda: rng.laplace(size=(64, 64)),
    }[law]
    z = [z_score(hill(esd(draw())).alpha, (64, 64)) for _ in range(1000)]
    assert np.mean(z) == pytest.approx(-0.2 * excess_kurtosis, abs=0.15)
    assert np.std(z) == pytest.approx(1, abs=0.1)
