import numpy as np
import pytest
from helpers import esd, lcg, naive_hill, naive_ks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from specdiag.records import HILL_TAILS
from specdiag.spectra.tail_rules import TAIL_RULES
from specdiag.spectra.tails import clip_xmax, fix_finger, hill, hill_paper, ks_optimal

LISTS = [
    (range(1, 9), 5.045317987617527, 3.126108388499037),
    (range(1, 8), 4.36636736341743, 3.5247755225630732),
    (range(1, 4), 5.932606924752863, 3.4663034623764317),
    (range(1, 3), np.inf, 2.4426950408889634),
    ([2**i for i in range(10)], 1.721347520444482, 1.480898346962988),
    (range(1, 101), 3.6780462970379615, 3.5431757060131175),
    ([i * i for i in range(1, 65)], 2.364955011820539, 2.2591791070999063),
]
PARETO = [
    (1.5, 1.5086289622552713, 1.4984868306013335, 1.5042732676870627),
    (2.0, 2.0172579245105426, 1.996973661202667, 2.0085465353741254),
    (3.0, 3.0345158490210857, 2.9939473224053343, 3.0170930707482486),
]
# shape, seed, hill, hill_paper, (KS alpha, xmin, D, k), compat fix-finger (alpha, k), fixed fix-finger (alpha, k)
MATRICES = [
    ((64, 64), 1, 2.1294117503407626, 2.0495838055210127, (2.709277, 5.713457, 0.174019, 25), (2.709277, 25), (6.234486, 11)),
    ((64, 96), 1, 2.4936269695673468, 2.459772593194416, (4.361802, 12.196587, 0.144502, 18), (2.056448, 43), (2.056448, 43)),
    ((96, 64), 1, 2.4981212226647935, 2.2654386415081773, (7.503161, 17.423651, 0.118875, 9), (1.659666, 53), (1.659666, 53)),
    ((64, 171), 1, 3.0314009469762127, 2.9525285828894887, (5.199482, 20.215823, 0.156938, 17), (2.660909, 41), (2.660909, 41)),
    ((64, 256), 1, 3.5191008170848805, 3.3011180277973446, (5.772160, 28.266343, 0.146090, 18), (2.361160, 53), (2.361160, 53)),
    ((63, 63), 2, 2.120176230787824, 2.085170723575705, (3.003733, 6.821652, 0.158593, 21), (1.759395, 41), (1.759395, 41)),
]  # fmt: skip


@pytest.mark.parametrize(("values", "code", "paper"), LISTS)
def test_lists(values, code, paper):
    eigenvalues = np.array(list(values), float)
    assert hill(eigenvalues).alpha == pytest.approx(code, rel=1e-10)
    assert hill_paper(eigenvalues).alpha == pytest.approx(paper, rel=1e-10)


def test_distance_of_a_list():
    assert hill(np.arange(1.0, 9.0)).ks == pytest.approx(0.27171508770354413, abs=1e-12)


@pytest.mark.parametrize(("a", "code", "paper", "ks"), PARETO)
def test_pareto_quantiles(a, code, paper, ks):
    eigenvalues = (1 - (np.arange(100) + 0.5) / 100) ** (-1 / (a - 1))
    assert hill(eigenvalues).alpha == pytest.approx(code, rel=1e-10)
    assert hill_paper(eigenvalues).alpha == pytest.approx(paper, rel=1e-10)
    best = ks_optimal(eigenvalues)
    assert best.k == 100
    assert best.alpha == pytest.approx(ks, rel=1e-10)
    assert best.ks == pytest.approx(0.006732818422, abs=1e-10)


@pytest.mark.parametrize(("shape", "seed", "code", "paper", "ks", "compat", "fixed"), MATRICES)
def test_lcg_matrices(shape, seed, code, paper, ks, compat, fixed):
    eigenvalues = esd(lcg(*shape, seed))
    assert hill(eigenvalues).alpha == pytest.approx(code, abs=1e-6)
    assert hill_paper(eigenvalues).alpha == pytest.approx(paper, abs=1e-6)
    best = ks_optimal(eigenvalues)
    assert (best.alpha, best.xmin, best.ks) == pytest.approx(ks[:3], abs=1e-6)
    assert best.k == ks[3]
    for found, expected in ((fix_finger(eigenvalues, compat=True), compat), (fix_finger(eigenvalues), fixed)):
        assert found.alpha == pytest.approx(expected[0], abs=1e-6)
        assert found.k == expected[1]


@pytest.mark.parametrize(
    ("shape", "seed", "code", "paper"),
    [
        ((64, 64), 0, 2.201083939243157, 2.161396230800351),
        ((128, 341), 0, 2.9279011938343142, 2.913555490151283),
        ((48, 192), 3, 3.4968084339374963, 3.1048548253519814),
    ],
)
def test_random_state_matrices(shape, seed, code, paper):
    eigenvalues = esd(np.random.RandomState(seed).standard_normal(shape))
    assert hill(eigenvalues).alpha == pytest.approx(code, abs=1e-6)
    assert hill_paper(eigenvalues).alpha == pytest.approx(paper, abs=1e-6)


def test_tridiagonal():
    w = 2 * np.eye(50) - np.eye(50, k=1) - np.eye(50, k=-1)
    assert hill(esd(w)).alpha == pytest.approx(2.140334931176318, abs=1e-9)


spectra = arrays(np.float64, st.integers(3, 120), elements=st.floats(1e-6, 1e6)).map(np.sort)


@given(spectra)
@settings(max_examples=150)
def test_pruned_search_finds_the_naive_minimum(eigenvalues):
    alpha, start, distance = naive_ks(eigenvalues)
    found = ks_optimal(eigenvalues)
    if not np.isfinite(alpha):
        assert found.alpha == np.inf
        return
    assert found.ks == pytest.approx(distance, abs=1e-9)
    if found.k != len(eigenvalues) - start:
        # Two thresholds with the same distance to rounding: either is a minimum.
        assert abs(found.ks - distance) < 1e-9
    else:
        assert found.alpha == pytest.approx(alpha, rel=1e-6)


def test_pruned_search_on_ties():
    eigenvalues = np.sort(np.repeat(np.geomspace(1, 50, 40), 3))
    alpha, start, distance = naive_ks(eigenvalues)
    found = ks_optimal(eigenvalues)
    assert (found.alpha, found.k, found.ks) == pytest.approx((alpha, len(eigenvalues) - start, distance), rel=1e-12)


@given(spectra, st.floats(1e-3, 1e3))
@settings(max_examples=100)
def test_scale_invariance_and_range(eigenvalues, scale):
    for rule in (hill, hill_paper, ks_optimal):
        alpha = rule(eigenvalues).alpha
        assert alpha > 1
        if np.isfinite(alpha) and alpha < 1e6:
            assert rule(eigenvalues * scale).alpha == pytest.approx(alpha, rel=1e-5)


def test_rotations_and_permutations_do_not_matter():
    w = lcg(64, 96, 1)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in w.shape)
    for same in (w.T, left @ w @ right, w[rng.permutation(64)][:, rng.permutation(96)]):
        assert hill(esd(same)).alpha == pytest.approx(hill(esd(w)).alpha, rel=1e-12)


def test_singular_values_have_half_the_index():
    eigenvalues = esd(lcg(64, 96, 1))
    assert hill(np.sqrt(eigenvalues)).alpha - 1 == pytest.approx(2 * (hill(eigenvalues).alpha - 1), rel=1e-12)


def test_naive_hill_agrees():
    eigenvalues = esd(lcg(63, 63, 2))
    assert hill(eigenvalues).alpha == pytest.approx(naive_hill(eigenvalues), rel=1e-12)


@pytest.mark.parametrize(("fraction", "k"), [(0.25, 25), (0.5, 50), (0.75, 75), (0.1, 10)])
def test_tail_fraction_counts(fraction, k):
    eigenvalues = np.geomspace(1, 100, 100)
    assert hill(eigenvalues, fraction).k == k
    assert hill(eigenvalues, fraction).xmin == eigenvalues[100 - k]
    assert hill_paper(eigenvalues, fraction).k == k
    assert hill_paper(eigenvalues, fraction).xmin == eigenvalues[100 - k - 1]


def test_against_powerlaw():
    powerlaw = pytest.importorskip("powerlaw")
    eigenvalues = esd(lcg(64, 171, 1))
    fit = powerlaw.Fit(eigenvalues, xmax=None, verbose=False)
    found = ks_optimal(eigenvalues)
    assert found.xmin == pytest.approx(fit.power_law.xmin, rel=1e-9)
    assert found.alpha == pytest.approx(fit.power_law.alpha, rel=1e-9)


def test_clipping_takes_a_finger_out_of_the_fit():
    """Nine nearly equal eigenvalues pass for a tail of their own, until three of them are left out."""
    bulk = 1 + 4 * np.random.default_rng(0).random(150)
    eigenvalues = np.sort(np.concatenate([bulk, 50 + 0.05 * np.arange(9)]))
    assert ks_optimal(eigenvalues).k == 9
    assert clip_xmax(eigenvalues) == ks_optimal(eigenvalues[:-3])._replace(n_clipped=3)
    assert clip_xmax(eigenvalues).alpha == pytest.approx(2.41, abs=0.01)


def test_a_power_law_is_not_clipped():
    eigenvalues = (1 - np.arange(400) / 400) ** (-1 / 1.5)
    assert clip_xmax(eigenvalues) == ks_optimal(eigenvalues)._replace(n_clipped=0)


def test_the_hill_rules_are_those_of_the_table():
    assert {name for name, rule in TAIL_RULES.items() if rule.is_hill} == HILL_TAILS
