"""Laws that are drawn over a spectrum."""

import numpy as np
import pytest

import specdiag
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.figures.laws import bulk


def test_the_bulk_of_noise_is_that_of_its_living_part():
    """Half of the rows are dead: the law has the shape of the others, and half of the eigenvalues."""
    w = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32) * 0.02
    w[::2] = 0
    report = specdiag.analyze({"model.layers.0.mlp.up_proj.weight": w}, device="cpu")
    law = bulk(report.records[0])
    assert law is not None
    assert law.shape == (100, 300)
    assert law.share == 0.5
    assert law.variance == pytest.approx(4e-4, rel=0.05)
    x = np.linspace(0, 1.1 * report.records[0].mp_edge, 20000)[1:]
    assert law.share * np.trapezoid(mp_density(x, law.shape, law.variance), x) == pytest.approx(0.5, rel=0.01)
    living = report.eigenvalues(report.records[0].key)[100:]
    assert np.median(living) == pytest.approx(
        np.interp(0.5, np.cumsum(mp_density(x, law.shape, law.variance)) * (x[1] - x[0]), x), rel=0.02
    )


def test_a_row_without_an_edge_has_no_bulk():
    (record,) = specdiag.analyze({"model.layers.0.mlp.up_proj.weight": np.eye(60, dtype=np.float32)}, device="cpu")
    assert bulk(record) is None
