"""Intruder dimensions and the null of low-rank products, against decompositions in full."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import with_singular_values

from specdiag.spectra.intruders import EPSILON, LEADING, count, leading
from specdiag.spectra.random_factors import energy_share, random_shares
from specdiag.system.blas_threads import OneBlasThread


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with OneBlasThread():
        yield


def all_cosines(changed, base):
    """Every cosine between the leading vectors of one matrix and all of the other, on the shorter side."""
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in (base, changed)]
    before, after = (np.linalg.svd(m.astype(np.float64), full_matrices=False)[0] for m in wide)
    return np.abs(before.T @ after[:, :LEADING]).max(axis=0)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (256, 256), (30, 90)])
@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_counts_are_those_of_full_decompositions(shape, strength):
    rng = np.random.default_rng(0)
    sigma = 1 / np.arange(1, min(shape) + 1) ** 0.5
    base = with_singular_values(sigma, shape, 1).astype("f4")
    update = rng.standard_normal((shape[0], 3)) @ rng.standard_normal((3, shape[1]))
    changed = (base + strength * update / np.linalg.norm(update, 2)).astype("f4")
    cosines = all_cosines(changed, base)
    cosines = cosines[: min(LEADING, min(shape) // 4)]
    _, vectors = leading(base, 2 * LEADING)
    near = np.abs(cosines - EPSILON) < 1e-3
    assert abs(count(changed, base, vectors) - (cosines < EPSILON).sum()) <= near.sum()
    if strength == 2:
        assert count(changed, base, vectors) == 3


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (12, 40)])
def test_leading_values_are_those_of_a_full_decomposition(shape):
    matrix = np.random.default_rng(0).standard_normal(shape).astype("f4")
    values, vectors = leading(matrix, 5)
    k = min(5, min(shape) // 4)
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False)[:k], rtol=1e-4)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-6)


def test_vectors_of_the_base_itself_are_no_intruders():
    base = np.random.default_rng(0).standard_normal((400, 200)).astype("f4")
    _, vectors = leading(base, 2 * LEADING)
    assert count(base, base, vectors) == 0


@pytest.mark.parametrize(("out", "inputs", "rank"), [(96, 64, 8), (200, 50, 16), (6, 40, 8)])
def test_the_null_is_that_of_full_products(out, inputs, rank):
    rng = np.random.default_rng(1)
    shares = [
        energy_share(np.linalg.svd(rng.standard_normal((out, rank)) @ rng.standard_normal((rank, inputs)))[1])
        for _ in range(200)
    ]
    mean, sd = random_shares(out, inputs, rank)
    assert abs(mean - np.mean(shares)) < 4 * sd * (2 / 200) ** 0.5
    assert 0.7 < sd / np.std(shares) < 1.4


@pytest.mark.parametrize("scale", [1e-25, 1e20])
@pytest.mark.parametrize("n", [30, 64])
def test_size_does_not_matter(n, scale):
    rng = np.random.default_rng(n)
    base = rng.standard_normal((n, 96)).astype("f4")
    changed = base + 40 * np.outer(rng.standard_normal(n), rng.standard_normal(96)).astype("f4")
    values, vectors = leading(base, 10)
    scaled, of_scaled = leading(base * np.float32(scale), 10)
    assert scaled == pytest.approx(values * scale, rel=1e-4)
    found = count(changed, base, vectors)
    assert found == count(changed * np.float32(scale), base * np.float32(scale), of_scaled) == 1


@pytest.mark.parametrize("n", [30, 64])
def test_zeros_and_all_but_zeros_have_no_vectors(n):
    for value in (0.0, 1e-40):
        values, vectors = leading(np.full((n, 96), value, "f4"), 10)
        assert (values.shape, vectors.shape) == ((0,), (n, 0))
