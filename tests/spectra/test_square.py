from itertools import pairwise

import numpy as np
import pytest
from helpers import esd, lcg

from specdiag.spectra import null
from specdiag.spectra.farms import farms_windows
from specdiag.spectra.square import square_windows, window_starts
from specdiag.spectra.tails import hill


def alpha_square(w):
    return hill(np.sort(np.concatenate([esd(v[0]) for v in square_windows(w[None])]))).alpha


def test_windows_cover_the_long_side():
    for shape in ((64, 64), (64, 65), (171, 64), (64, 256), (30522, 384)):
        n, m = sorted(shape)
        starts = window_starts(shape)
        assert len(starts) == -(-m // n)
        assert starts[0] == 0
        assert starts[-1] == m - n
        assert all(0 < b - a <= n for a, b in pairwise(starts))


def test_windows_are_square_views():
    w = lcg(40, 100, 1)[None]
    assert [v.shape for v in square_windows(w)] == [(1, 40, 40)] * 3
    assert all(np.shares_memory(v, w) for v in square_windows(w))
    assert [v.shape for v in square_windows(w.transpose(0, 2, 1))] == [(1, 40, 40)] * 3


@pytest.mark.parametrize("kind", ["rows", "columns", "both"])
def test_shape_free(kind):
    """One covariance at aspect 1 to 8: alpha_square moves by less than 0.1 (here 0.05), rho by far more where rows differ."""
    rng = np.random.default_rng(0)
    n = 384
    squares, rhos = [], []
    for aspect in (1, 8 / 3, 4, 8):
        m = round(n * aspect)
        w = rng.standard_normal((n, m))
        if kind in ("rows", "both"):
            w *= np.exp(0.8 * np.random.default_rng(1).standard_normal((n, 1)))
        if kind in ("columns", "both"):
            w *= np.exp(0.8 * rng.standard_normal((1, m)))
        squares.append(alpha_square(w))
        rhos.append((hill(esd(w)).alpha - 1) / (null.alpha_null(hill, (n, m)) - 1))
    assert np.ptp(squares) < 0.05
    if kind != "columns":
        assert np.ptp(rhos) > 0.15


def test_noise_scores_the_square_null_at_every_shape():
    rng = np.random.default_rng(0)
    for m in (200, 300, 800):
        expected = null.alpha_null_square(200)
        assert alpha_square(rng.standard_normal((200, m))) == pytest.approx(expected, abs=4 * 3.7 / 200)


@pytest.mark.parametrize(
    ("shape", "rows", "aspect", "windows", "count", "alpha"),
    [
        ((96, 256), 64, 1, 5, 25, 2.1222922365),
        ((64, 171), 64, 1, 3, 3, 2.1551625912),
        ((128, 128), 2000, 1, 10, 1, 2.1462943401),
        ((100, 80), 50, 1, 4, 16, 2.1557222736),
    ],
)
def test_farms(shape, rows, aspect, windows, count, alpha):
    w = lcg(*shape, 1)[None]
    cuts = list(farms_windows(w, rows, aspect, windows))
    assert len(cuts) == count
    pooled = np.sort(np.concatenate([esd(v[0]) for v in cuts]))
    assert hill(pooled).alpha == pytest.approx(alpha, abs=1e-9)


def test_whole_matrices_beside_farms():
    assert hill(esd(lcg(96, 256, 1))).alpha == pytest.approx(3.017, abs=5e-4)
    assert hill(esd(lcg(100, 80, 1))).alpha == pytest.approx(2.3556225059, abs=1e-9)


def test_farms_with_one_window_a_dimension():
    assert [v.shape for v in farms_windows(lcg(30, 50, 1)[None], 20, 1, 1)] == [(1, 20, 20)]
