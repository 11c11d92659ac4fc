"""square_alpha against closed forms, simulated cuts, SVDs of rotated matrices, and what it must not depend on."""

import numpy as np
import pytest
from helpers import esd, gaussian_eigenvalues, mp_alpha, mp_quantiles, with_singular_values
from scipy.optimize import brentq

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.spectra import compression
from specdiag.spectra.eigenvalues import spectrum
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.square import SQUARE_NULL, cut_alpha


def square(eigenvalues, columns, aspect=1.0):
    return cut_alpha(np.sort(np.asarray(eigenvalues, float))[None], columns, aspect)


def of_matrix(w):
    return square(esd(w), max(w.shape)).alpha


def hill_of_law(eigenvalues):
    """Hill at tail fraction 1/2 with the threshold between the middle eigenvalues."""
    values = np.sort(eigenvalues)
    median = np.exp(np.median(np.log(values)))
    upper = np.log(values[values > median] / median)
    return 1 + len(values) / 2 / upper.sum()


def rotated_cut(w, rng):
    """Eigenvalues of W Q with Q a Haar frame of n columns: R of the QR of its product with a Gaussian matrix."""
    wide = w if w.shape[0] <= w.shape[1] else w.T
    frame = np.linalg.qr(rng.standard_normal((wide.shape[1], wide.shape[0])))[0]
    return esd(wide @ frame)


def test_arcsine_law():
    """Equal eigenvalues at 1:2 give the arcsine law on (0, 1): I is an integral of elementary functions."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    angle = (nodes + 3) * np.pi / 8
    excess = (weights * np.log(2 * np.sin(angle) ** 2)).sum() / 4
    found = square(np.ones(64), 128)
    assert found.threshold == pytest.approx(0.5, rel=1e-12)
    assert found.alpha == pytest.approx(1 + 0.5 / excess, rel=1e-9)
    assert found.alpha == pytest.approx(3.1137339553, abs=1e-9)


@pytest.mark.parametrize(
    ("eigenvalues", "columns", "alpha", "threshold"),
    [
        (1 / np.arange(1, 65), 128, 1.973473, 0.0153846),
        (1 / np.arange(1, 65), 171, 1.901977, 0.0105844),
        (1 / np.arange(1, 65), 256, 1.845642, 0.0065034),
        (1 / np.arange(1, 257), 1024, 1.818074, 0.0016472),
        (np.linspace(1, 2, 100), 400, 2.331762, None),
        (np.concatenate([np.zeros(16), np.ones(47), [1e6]]), 256, 1.730418, None),
    ],
)
def test_check_cases(eigenvalues, columns, alpha, threshold):
    found = square(eigenvalues, columns)
    assert found.alpha == pytest.approx(alpha, abs=2e-6)
    if threshold is not None:
        assert found.threshold == pytest.approx(threshold, abs=1e-7)


@pytest.mark.parametrize("aspect", [1.25, 2, 8, 32, 1000])
def test_marchenko_pastur_law_becomes_the_square_one(aspect):
    assert square(mp_quantiles(1024, 1 / aspect), round(1024 * aspect)).alpha == pytest.approx(SQUARE_NULL, abs=2e-4)


@pytest.mark.parametrize("aspect", [1.5, 2, 3])
def test_cut_to_another_aspect_is_the_law_of_that_aspect(aspect):
    found = square(mp_quantiles(1024, 1 / 4), 4096, aspect)
    assert found.alpha == pytest.approx(mp_alpha(1 / aspect), abs=1e-3)


def test_own_aspect_is_the_matrix_itself():
    values = mp_quantiles(200, 1 / 4)
    assert square(values, 800, 4).alpha == pytest.approx(hill_of_law(values), rel=1e-12)
    assert square(values, 800, 3.99).alpha == pytest.approx(hill_of_law(values), abs=0.02)


def test_two_steps_are_one():
    values = mp_quantiles(128, 1 / 4) * np.geomspace(1, 30, 128)
    half = [
        compression.upper_mean([compression.Cut(values, 512, 1 / 2)], (j + 0.5) / 256)[0] for j in range(127, -1, -1)
    ]
    assert square(half, 256).alpha == pytest.approx(square(values, 512).alpha, abs=1e-3)


@pytest.mark.parametrize("aspect", [0.9, 4.1])
def test_aspects_that_the_matrix_cannot_have(aspect):
    with pytest.raises(ValueError, match="outside 1 to 4"):
        square(np.ones(64), 256, aspect)


def test_more_nodes_change_nothing(monkeypatch):
    cases = [
        (1 / np.arange(1, 65), 128),
        (mp_quantiles(64, 1e-3), 64000),
        (np.concatenate([np.zeros(16), np.ones(47), [1e6]]), 256),
        (mp_quantiles(2000, 1 / 1.001), 2002),
    ]
    coarse = [square(*case).alpha for case in cases]
    monkeypatch.setattr(compression, "_NODES", 40)
    assert coarse == pytest.approx([square(*case).alpha for case in cases], abs=1e-7)


@pytest.mark.parametrize("n", [50, 51, 1000, 16384])
@pytest.mark.parametrize("aspect", [1.001, 1.01, 4, 1000])
def test_every_size_with_zeros_and_a_spike(n, aspect):
    """The spike of 1e6 means adds ln(1e6/threshold)/n to I, and moves nothing else by more than its mass."""
    values = np.array(mp_quantiles(n, 1 / aspect))
    columns = max(round(n * aspect), n + 1)
    plain = square(values, columns)
    assert plain.alpha == pytest.approx(SQUARE_NULL, abs=0.02 + 4 / n)
    values[: n // 5] = 0
    values[-1] = 1e6
    found = square(values, columns)
    assert 1 < found.alpha < plain.alpha
    assert 0 < found.threshold < plain.threshold * 1.1


def test_gap_at_the_median():
    """Half of the eigenvalues 100 times the others: the threshold is in the gap, at the mean of its edges in ln x."""
    low, high = 1.0, 1e4
    values = np.repeat([low, high], 50)
    assert square(values, 100).threshold == pytest.approx(100, rel=1e-12)
    found = square(values, 150)
    assert low < found.threshold < high
    jitter = 1 + 1e-3 * np.sin(np.arange(100))
    for columns in (140, 150, 151, 160):
        near = square(np.sort(values * jitter), columns)
        assert near.threshold == pytest.approx(square(values, columns).threshold, rel=2e-3)
        assert near.threshold == pytest.approx(found.threshold, rel=0.1)
    longer = square(values * 7, 150)
    assert longer.threshold == pytest.approx(7 * found.threshold, rel=1e-9)
    assert longer.alpha == pytest.approx(found.alpha, rel=1e-9)


def test_middle_eigenvalue_of_an_odd_number():
    values = np.geomspace(1, 16, 51)
    assert square(values, 51).threshold == pytest.approx(4, rel=1e-12)
    assert square(values, 51).alpha == pytest.approx(hill_of_law(values), rel=1e-12)


def test_scale_does_not_matter():
    values = mp_quantiles(100, 1 / 3)
    for factor in (1e-200, 1e-30, 1e30, 1e200):
        assert square(values * factor, 300).alpha == pytest.approx(square(values, 300).alpha, rel=1e-10)


def test_half_of_the_eigenvalues_zero():
    assert square(np.repeat([0.0, 1.0], [60, 40]), 200) == (1.0, 0.0)
    assert square(np.ones(64), 64).alpha == np.inf


def test_slices_are_averaged():
    """Slices of three scales, against the pooled eigenvalues of their square cuts; as one matrix it would be 1.63."""
    rng = np.random.default_rng(0)
    stack = [scale * rng.standard_normal((64, 256)) for scale in (1, 0.5, 0.1)]
    found = cut_alpha(np.array([esd(w) for w in stack]), 256).alpha
    cuts = [hill_of_law(np.concatenate([rotated_cut(w, rng) for w in stack])) for _ in range(40)]
    assert found == pytest.approx(np.mean(cuts), abs=5 * np.std(cuts) / 40**0.5)
    assert found == pytest.approx(1.514, abs=0.02)


def test_equal_slices_are_one():
    values = np.sort(1 / np.arange(1, 65))
    assert cut_alpha(np.array([values, values]), 128).alpha == pytest.approx(square(values, 128).alpha, rel=1e-9)


@pytest.mark.parametrize("n", [64, 65])
def test_limit_of_all_columns(n):
    """As tau goes to 1 the threshold tends to the middle eigenvalue, or to a zero of the field between the middle two."""
    values = gaussian_eigenvalues(n, n, np.random.default_rng(n)) / n
    half = n // 2
    limit = values[half]
    if n % 2 == 0:
        limit = brentq(lambda x: (1 / (x - values)).sum(), values[half - 1] * (1 + 1e-9), limit * (1 - 1e-9))
    found, _ = compression.upper_mean([compression.Cut(values / values.mean(), n, 1 - 1e-6)], 0.5)
    assert found * values.mean() == pytest.approx(limit, rel=1e-6)


def test_one_row_covariance_scores_the_same_at_every_aspect():
    """Means of 20 draws within .01 over aspects 1 to 32, n = 256; rho falls from .7 to .3 meanwhile."""
    n, rng = 256, np.random.default_rng(0)
    scales = {
        "lognormal": np.exp(0.9 * np.random.default_rng(1).standard_normal(n)),
        "power law": np.arange(1, n + 1) ** -0.5,
        "spiked": np.where(np.arange(n) < 5, 12.0, 1.0),
    }
    for scale in scales.values():
        means = []
        for aspect in (1, 2, 8, 32):
            m = n * aspect
            found = []
            for _ in range(20):
                gram = _wishart(rng, n, m)
                found.append(square(np.linalg.eigvalsh(scale[:, None] * gram * scale), m).alpha)
            means.append(np.mean(found))
        assert np.ptp(means) < 0.01


def _wishart(rng, n, m):
    """Z Z^T of an n x m Gaussian matrix, by Bartlett's triangle."""
    lower = np.tril(rng.standard_normal((n, n)), -1)
    lower[np.arange(n), np.arange(n)] = np.sqrt(rng.chisquare(m - np.arange(n)))
    return lower @ lower.T


@pytest.mark.parametrize("kind", ["power law", "spikes", "flat"])
def test_synthetic_matrices_against_rotated_cuts(kind):
    n, m = 128, 352
    sigma = {
        "power law": np.arange(1, n + 1) ** -0.7,
        "spikes": np.concatenate([[50.0, 20, 10], np.linspace(2, 1, n - 3)]),
        "flat": np.linspace(1, 1.2, n),
    }[kind]
    _agrees_with_rotated_cuts(with_singular_values(sigma, (n, m)), 30)


def _agrees_with_rotated_cuts(w, draws):
    """Within the spread of single cuts, and within 5 standard errors and 1/n of their mean."""
    rng = np.random.default_rng(0)
    cuts = np.array([hill_of_law(rotated_cut(w, rng)) for _ in range(draws)])
    found = of_matrix(w)
    assert abs(found - cuts.mean()) < 3 * cuts.std() + 0.5 / min(w.shape)
    assert found == pytest.approx(cuts.mean(), abs=5 * cuts.std() / draws**0.5 + 0.5 / min(w.shape))


@pytest.mark.parametrize(("model", "role"), [("minilm", "up"), ("minilm", "down"), ("smollm2-gguf", "gate")])
def test_real_weights_against_rotated_cuts(asset, model, role):
    held = next(m for m in open_checkpoint(asset(model)).matrices if m.module.role == role)
    _agrees_with_rotated_cuts(held.load().numpy().astype(np.float64), 4)


def test_permutations_and_rotations():
    """Equal to 1e-9 after permuting either side in any storage type, and after rotating in float64."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((96, 250)) * np.exp(rng.standard_normal((96, 1)))
    for name in ("F64", "F32", "F16", "BF16"):
        storage = FLOAT_TYPES[name]
        stored = (w.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) if name == "BF16" else w
        stored = stored.astype(storage.storage)
        permuted = stored[rng.permutation(96)][:, rng.permutation(250)]
        assert _by_engine(permuted, storage) == pytest.approx(_by_engine(stored, storage), rel=1e-9)
    turned = np.linalg.qr(rng.standard_normal((96, 96)))[0] @ w @ np.linalg.qr(rng.standard_normal((250, 250)))[0]
    assert _by_engine(turned, FLOAT_TYPES["F64"]) == pytest.approx(_by_engine(w, FLOAT_TYPES["F64"]), rel=1e-9)


def _by_engine(w, storage):
    return cut_alpha(spectrum(np.ascontiguousarray(w)[None], storage).eigenvalues[None], max(w.shape)).alpha


def test_float32_eigenvalues():
    rng = np.random.default_rng(0)
    values = esd(rng.standard_normal((128, 300)) * np.exp(rng.standard_normal((128, 1))))
    assert square(values.astype(np.float32), 300).alpha == pytest.approx(square(values, 300).alpha, rel=1e-6)


def test_windows_of_exchangeable_columns():
    """Square windows of the stored matrix estimate the same where no order of columns is special: n = 128, 12 draws."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(12):
        w = rng.standard_normal((128, 512)) * np.exp(0.8 * rng.standard_normal((128, 1)))
        windows = [hill_of_law(esd(w[:, start : start + 128])) for start in range(0, 512, 128)]
        differences.append(of_matrix(w) - np.mean(windows))
    assert abs(np.mean(differences)) < 0.01


def test_order_of_columns_does_not_matter():
    """Half of the columns scaled by .01: windows of the stored matrix read 1.15 sorted and 1.46 shuffled."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((128, 512)) * np.repeat([0.01, 1], 256)
    assert of_matrix(w) == pytest.approx(of_matrix(w[:, rng.permutation(512)]), rel=1e-9)


def test_columns_of_unequal_norm_are_rotated_away():
    """A stated limit: n sampled columns have an alpha up to .06 smaller than the square cut."""
    rng = np.random.default_rng(0)
    for aspect in (2, 4):
        lower = []
        for _ in range(8):
            w = rng.standard_normal((128, 128 * aspect)) * np.arange(1, 128 * aspect + 1) ** -0.5
            sampled = [hill_of_law(esd(w[:, rng.permutation(128 * aspect)[:128]])) for _ in range(20)]
            lower.append(of_matrix(w) - np.mean(sampled))
        assert 0 < np.mean(lower) < 0.08


def test_a_slice_of_zeros_is_a_third_of_the_spectrum():
    rng = np.random.default_rng(0)
    first, second = (esd(rng.standard_normal((64, 256))) for _ in range(2))
    found = cut_alpha(np.array([first, second, np.zeros(64)]), 256)
    tiny = cut_alpha(np.array([first, second, first * 1e-20]), 256)
    assert tuple(found) == pytest.approx(tuple(tiny), rel=1e-6)
    assert cut_alpha(np.array([first, np.zeros(64)]), 256) == (1.0, 0.0)


@pytest.mark.numeric
def test_nearly_equal_eigenvalues_are_told_apart_as_distant_ones_are():
    """Those of an orthogonal matrix in float32 differ by 1e-7: the exponent less 1 is as the inverse of that."""
    z = np.sort(np.random.default_rng(3).standard_normal(576))
    wide, narrow = (d * (cut_alpha(1 + d * z[None], 768).alpha - 1) for d in (1e-5, 1e-7))
    assert narrow == pytest.approx(wide, rel=5e-5)
