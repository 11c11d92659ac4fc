import numpy as np
import pytest
from helpers import esd, lcg

from specdiag.spectra.farms import farms_windows
from specdiag.spectra.tails import hill


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
