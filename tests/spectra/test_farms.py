import numpy as np
import pytest
from helpers import esd, lcg

import specdiag
from specdiag.analysis.cost import flops
from specdiag.analysis.settings import make_settings
from specdiag.analysis.source import open_source
from specdiag.errors import UsageError
from specdiag.records import Settings
from specdiag.spectra.farms import farms_windows, windows_of
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


def by_hand(w, rows, aspect, windows):
    """alpha and the length of its tail over windows that are cut and solved one by one."""
    cols = int(rows * aspect)
    steps = [max(1, int((side - size) / (windows - 1))) for side, size in zip(w.shape, (rows, cols), strict=True)]
    values = []
    for i in range(windows):
        for j in range(windows):
            top, left = i * steps[0], j * steps[1]
            if (i and top > w.shape[0] - rows) or (j and left > w.shape[1] - cols):
                continue
            values += list(np.linalg.svd(w[top : top + rows, left : left + cols], compute_uv=False) ** 2)
    values = sorted(values)
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / sum(np.log(v / tail[0]) for v in tail), len(tail)


@pytest.mark.parametrize(
    ("shape", "rows", "aspect", "windows"),
    [((150, 400), 100, 1, 4), ((400, 150), 60, 2, 3), ((130, 130), 128, 0.5, 7), ((200, 90), 40, 1.5, 10)],
)
def test_settings_of_an_analysis(shape, rows, aspect, windows):
    w = np.random.default_rng(0).standard_t(3, shape)
    report = specdiag.analyze(
        {"layers.0.mlp.up_proj.weight": w}, device="cpu", tail="farms", farms_rows=rows, farms_aspect=aspect,
        farms_windows=windows,
    )  # fmt: skip
    (record,) = report
    assert (record.alpha, record.k) == pytest.approx(by_hand(w, rows, aspect, windows), rel=1e-9)
    settings = report.settings
    assert (settings.farms_rows, settings.farms_aspect, settings.farms_windows) == (rows, aspect, windows)
    count, (height, width) = windows_of(shape, settings)
    cuts = [v.shape[1:] for v in farms_windows(w[None], rows, aspect, windows)]
    assert [(height, width)] * count == cuts


def test_defaults_are_written_down():
    settings = make_settings(tail="farms", farms_rows=500)
    assert (settings.farms_rows, settings.farms_aspect, settings.farms_windows) == (500, 1.0, 10)
    others = make_settings()
    assert (others.farms_rows, others.farms_aspect, others.farms_windows) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"farms_rows": 500}, "farms_rows= describes the windows of tail=farms, not hill"),
        ({"tail": "ks", "farms_aspect": 1, "farms_windows": 2}, "farms_aspect=, farms_windows= describes the windows"),
        ({"tail": "farms", "farms_rows": 0}, "farms_rows=0: give a whole number of at least 1"),
        ({"tail": "farms", "farms_aspect": 0}, "farms_aspect=0: give a number above 0"),
        ({"tail": "farms", "farms_windows": 1001}, "farms_windows=1001: give a whole number of at least 1 and at most"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        make_settings(**options)


def test_extreme_windows_have_a_number_or_a_reason():
    state = {"layers.0.mlp.up_proj.weight": np.random.default_rng(0).standard_normal((80, 100))}
    for options in ({"farms_rows": 1}, {"farms_aspect": 1e-9}, {"farms_aspect": 1e9}, {"farms_windows": 1}):
        (record,) = specdiag.analyze(state, device="cpu", tail="farms", **options)
        assert (record.alpha is None) == (record.status != "ok")
        assert record.alpha is None or record.alpha > 1


def test_the_estimated_work_counts_the_windows():
    (matrix,) = open_source({"w": np.zeros((100, 200), "f4")}).matrices
    plain, windows = Settings(), make_settings(tail="farms", farms_rows=50, farms_windows=3)
    one = 50 * 50 * 50 + 4 / 3 * 50**3
    assert flops(matrix, windows) == pytest.approx(flops(matrix, plain) + 9 * one)
