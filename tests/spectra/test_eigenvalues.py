import numpy as np
import pytest
import torch
from helpers import esd, lcg, with_singular_values
from hypothesis import given, settings
from hypothesis import strategies as st

from specdiag.errors import ComputationError
from specdiag.spectra import blas, eigenvalues
from specdiag.spectra.eigenvalues import check_trace, exact, spectrum
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.tails import hill

F32, F64 = FLOAT_TYPES["F32"], FLOAT_TYPES["F64"]


def stored(w, name):
    """`w` in a storage type, as the reader hands it over, and its exact values."""
    if name == "BF16":
        t = torch.from_numpy(w).to(torch.bfloat16)
        return t.view(torch.uint16).numpy(), t.double().numpy()
    raw = w.astype(FLOAT_TYPES[name].storage)
    return raw, raw.astype(np.float64)


@pytest.mark.parametrize("name", FLOAT_TYPES)
@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (80, 80), (1000, 7)])
def test_every_storage_type_and_orientation(name, shape):
    raw, values = stored(lcg(*shape, 3), name)
    found = spectrum(raw[None], FLOAT_TYPES[name])
    assert found.eigenvalues == pytest.approx(esd(values), rel=1e-9)
    assert found.frobenius2 == pytest.approx((values**2).sum(), rel=1e-12)
    assert found.n_zero == np.count_nonzero(found.eigenvalues <= found.floor) <= 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["gram", "svd"])
def test_known_spectrum(dtype, method):
    sigma = np.geomspace(1, 30, 64)
    w = with_singular_values(sigma, (64, 150)).astype(np.float32)
    found = spectrum(w[None], F32, method=method, dtype=dtype)
    assert np.sqrt(found.eigenvalues) == pytest.approx(sigma, rel=2e-4 if dtype == "float32" else 2e-6)


def test_blocks_do_not_change_the_answer(monkeypatch):
    w = lcg(50, 2000, 1).astype(np.float32)
    whole = spectrum(w[None], F32).eigenvalues
    monkeypatch.setattr(eigenvalues, "_BLOCK_BYTES", 50 * 8 * 37)
    assert spectrum(w[None], F32).eigenvalues == pytest.approx(whole, rel=1e-11)
    assert spectrum(w.T.copy()[None], F32).eigenvalues == pytest.approx(whole, rel=1e-11)


def test_strided_views_are_read_as_they_are():
    w = lcg(60, 300, 5)
    for view in (w[:, ::2], w[::3], w[:, 40:100], w.T):
        assert spectrum(view[None], F64).eigenvalues == pytest.approx(esd(view), rel=1e-8, abs=1e-12)


def test_slices_are_pooled():
    stack = np.stack([lcg(30, 40, s) for s in (1, 2, 3)])
    pooled = np.sort(np.concatenate([esd(w) for w in stack]))
    assert spectrum(stack, F64).eigenvalues == pytest.approx(pooled, rel=1e-10)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31), st.floats(-60, 60))
@settings(max_examples=60)
def test_invariances(n, m, seed, exponent):
    w = np.random.default_rng(seed).standard_normal((n, m))
    plain = spectrum(w[None], F64).eigenvalues
    assert spectrum(np.ascontiguousarray(w.T)[None], F64).eigenvalues == pytest.approx(plain, rel=1e-9, abs=1e-11)
    assert spectrum(w[::-1, ::-1][None], F64).eigenvalues == pytest.approx(plain, rel=1e-9, abs=1e-11)
    scale = 2.0 ** round(exponent)
    assert spectrum(w[None] * scale, F64).eigenvalues == pytest.approx(plain * scale**2, rel=1e-9, abs=1e-11 * scale**2)


def test_the_error_estimate_bounds_the_error():
    for spread in (1, 2, 3, 4):
        sigma = np.geomspace(10.0**-spread, 10.0**spread, 128)
        w = with_singular_values(sigma, (128, 128))
        exactly = hill(esd(w))
        for dtype in ("float32", "float64"):
            found = spectrum(w[None], F64, dtype=dtype)
            fit = hill(np.maximum(found.eigenvalues, 1e-300))
            assert abs(fit.alpha - exactly.alpha) <= found.alpha_error(fit.alpha, fit.xmin) + 1e-12


@pytest.mark.parametrize("noise", [1e-3, 1e-2, 1e-1, 1])
@pytest.mark.parametrize("shape", [(128, 128), (96, 1200), (3000, 64)])
def test_the_error_estimate_bounds_the_error_of_nearly_equal_eigenvalues(shape, noise):
    """There alpha is large, and its error grows as its square."""
    rng = np.random.default_rng(0)
    w = with_singular_values(1 + noise * rng.random(min(shape)), shape).astype(np.float32)
    exactly = hill(esd(w))
    for method in ("gram", "svd"):
        found = spectrum(w[None], F32, method=method, dtype="float32")
        fit = hill(found.eigenvalues)
        assert abs(fit.alpha - exactly.alpha) <= found.alpha_error(fit.alpha, fit.xmin)
        assert found.is_precise(exactly.alpha, fit.xmin) == (noise > (1e-2 if method == "gram" else 1e-1))


def test_the_error_of_equal_eigenvalues_is_infinite():
    found = spectrum(np.eye(64)[None], F64)
    assert found.alpha_error(np.inf, 1.0) == found.alpha_error(1e15, 1.0) == np.inf
    assert not found.is_precise(np.inf, 1.0)


def test_low_rank_is_counted_and_zero():
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((100, 20)) @ rng.standard_normal((20, 160))).astype(np.float32)
    assert spectrum(w[None], F32).n_zero == 80
    assert exact(w[None], F32).n_zero == 80


def test_exact_matches_svd_where_gram_cannot():
    sigma = np.geomspace(1e-10, 1, 60)
    w = with_singular_values(sigma, (60, 90))
    found = exact(w[None], F64)
    assert np.sqrt(found.eigenvalues) == pytest.approx(sigma, rel=1e-4)
    assert spectrum(w[None], F64).n_zero is None


def test_bf16_rounding_costs_a_square_matrix_few_ranks():
    raw, _ = stored(np.random.default_rng(0).standard_normal((200, 200)), "BF16")
    found = spectrum(raw[None], FLOAT_TYPES["BF16"])
    assert found.n_zero is not None
    assert found.n_zero <= 6
    assert np.median(found.eigenvalues) > 100 * found.floor


def test_reference_bits():
    torch.set_num_threads(1)
    w = torch.randn(96, 300, generator=torch.Generator().manual_seed(0))
    reference, _ = torch.sort(torch.square(torch.linalg.svdvals(w).flatten()))
    found = spectrum(w.numpy()[None], F32, method="svd", dtype="float32").eigenvalues
    assert np.array_equal(found, reference.double().numpy())


def test_trace_check():
    with pytest.raises(ComputationError, match="sum to"):
        check_trace(np.ones(10), 10.1, 2.0**-53)


def test_large_matrices_take_the_other_eigensolver(monkeypatch):
    w = lcg(64, 80, 2)
    plain = spectrum(w[None], F64).eigenvalues
    monkeypatch.setattr(eigenvalues, "torch_solves", lambda n, dtype: True)
    assert spectrum(w[None], F64).eigenvalues == pytest.approx(plain, rel=1e-12)


def test_capsule_signatures_are_checked():
    import scipy.linalg.cython_blas as cython_blas

    with pytest.raises(ComputationError, match="SciPy's dsyrk has the signature"):
        blas._routine(cython_blas, "dsyrk", 9)
