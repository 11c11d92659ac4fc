import numpy as np
import pytest

from specdiag.decay.assignment import clipped, linear, linear_reference, log2, sigmoid, square_root

ALPHAS = np.array([1.70, 1.75, 1.95, 1.90, 2.35, 2.42, 2.50])
EXPECTED = [
    (lambda a: linear(a, 0.67, 3), [0.67, 0.815625, 1.398125, 1.2525, 2.563125, 2.767, 3]),
    (lambda a: linear(a, 0.67, 5), [0.67, 0.940625, 2.023125, 1.7525, 4.188125, 4.567, 5]),
    (square_root, [0.906228, 0.919458, 0.970578, 0.958053, 1.065484, 1.081236, 1.098963]),
    (log2, [0.734884, 0.775030, 0.924898, 0.888924, 1.183307, 1.223958, 1.269000]),
    (
        lambda a: sigmoid(a, [0] * len(a)),
        [0.014196, 0.026955, 0.308288, 0.174109, 1.940166, 1.975398, 1.991202],
    ),
]
# Figure 1b of the paper, layer 1, q k v o gate up down: the bars follow equation 3 over all eight layers.
LAYER_1, LOWEST, HIGHEST = [1.747, 1.735, 3.169, 2.667, 2.266, 2.290, 2.490], 1.682, 3.169


@pytest.mark.parametrize(("rule", "expected"), EXPECTED)
def test_published_values(rule, expected):
    assert rule(list(ALPHAS)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("rule", "expected"), EXPECTED)
def test_order_does_not_matter_and_gaps_move_nothing(rule, expected):
    order = np.random.default_rng(0).permutation(len(ALPHAS))
    assert rule(ALPHAS[order]) == pytest.approx(np.array(expected)[order], abs=1e-6)
    with_gap = rule(np.insert(ALPHAS, 2, np.nan))
    assert with_gap[2] == 1
    assert np.delete(with_gap, 2) == pytest.approx(expected, abs=1e-6)


def test_the_papers_figure():
    bars = linear(np.array([*LAYER_1, LOWEST]))[:-1]
    assert bars == pytest.approx([0.769, 0.750, 3.000, 2.212, 1.583, 1.621, 1.935], abs=0.004)


def test_mean_preserving_rules():
    assert np.mean(square_root(ALPHAS)) == pytest.approx(1)
    assert np.mean(log2(ALPHAS)) == pytest.approx(1)
    assert np.mean(linear(ALPHAS)) > 1.5


def test_equal_and_missing_exponents():
    equal = np.full(3, 2.0)
    for rule in (linear, square_root, log2, lambda a: sigmoid(a, [0, 0, 0])):
        assert rule(equal) == pytest.approx([1, 1, 1])
        assert rule(np.full(3, np.nan)) == pytest.approx([1, 1, 1])


def test_the_reference_and_its_fragility():
    assert linear_reference(list(ALPHAS)) == pytest.approx(linear(ALPHAS))
    assert linear_reference([2.0, 2.0, 2.0]) == pytest.approx([3, 3, 3])
    assert linear_reference(list(ALPHAS)) == pytest.approx(np.interp(ALPHAS, [1.7, 2.5], [0.67, 3]), rel=1e-15)
    assert np.isnan(linear_reference([np.nan, 2.0, 3.0])).all()
    later = linear_reference([2.0, np.nan, 3.0])
    assert np.isnan(later).tolist() == [False, True, False]
    assert linear_reference([2.0, 2.5, np.inf])[:2] == pytest.approx([0.67, 0.67])


def test_sigmoid_is_per_layer():
    assert sigmoid(np.array([1.0, 2.0, 11.0, 12.0]), [0, 0, 1, 1]) == pytest.approx(
        [2 / (1 + np.exp(4)), 2 / (1 + np.exp(-4))] * 2, abs=1e-6
    )


def test_clipping_to_percentiles():
    values = [*np.random.default_rng(0).normal(size=40), 9.0]
    low, high = np.percentile(values, [5, 95])
    assert clipped([None, *values], 5, 95) == pytest.approx([None, *np.clip(values, low, high)])
    assert clipped([None, np.nan], 5, 95) == [None, pytest.approx(np.nan, nan_ok=True)]


def test_alpha_pruning_is_the_same_map_under_a_size_weighted_mean():
    sizes = np.array([4, 4, 4, 4, 11, 11, 11])
    phi = np.array(linear(ALPHAS, 0.7, 1.3))
    sparsity = 0.7 * phi * sizes.sum() / (sizes * phi).sum()
    expected = [0.447093, 0.471044, 0.566850, 0.542898, 0.758461, 0.791993, 0.830315]
    assert sparsity == pytest.approx(expected, abs=1e-6)
    assert np.average(sparsity, weights=sizes) == pytest.approx(0.7)
