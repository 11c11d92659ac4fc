"""dtype=auto: float32 for coarse storage, only where no count and no missing value depends on it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import with_singular_values

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.records import Settings
from specdiag.spectra import metrics
from specdiag.spectra.arithmetic import decides_nothing, first_type
from specdiag.spectra.eigenvalues import assemble, spectrum
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.tails import ks_optimal

BF16, F16, F32 = (FLOAT_TYPES[name] for name in ("BF16", "F16", "F32"))
BY_ARITHMETIC = {"compute_dtype", "method", "alpha_error"}


def in_bfloat16(folder):
    """The matrices of a checkpoint that are stored whole, rounded to bfloat16."""
    whole = [m for m in open_checkpoint(folder).matrices if m.n_slices == 1 and m.module.part is None]
    return {m.name: m.load().to(torch.bfloat16) for m in whole}


def require_equal(automatic, exact):
    """No count, status or empty value may differ, and no float by more than what is claimed."""
    for ours, truth in zip(automatic, exact, strict=True):
        for name in set(ours.__struct_fields__) - BY_ARITHMETIC:
            found, expected = getattr(ours, name), getattr(truth, name)
            if name == "alpha" and expected is not None:
                assert abs(found - expected) <= ours.alpha_error + truth.alpha_error, ours.key
            elif name == "z" and expected is not None:
                assert found == pytest.approx(expected, abs=2e-2), ours.key
            elif isinstance(expected, float) and name == "pl_ks":
                assert found == pytest.approx(expected, abs=2e-4), ours.key
            elif isinstance(expected, float):
                assert found == pytest.approx(expected, rel=2e-4), (ours.key, name)
            else:
                assert found == expected, (ours.key, name)


@pytest.mark.parametrize("name", ["minilm", "antiberty", "rxnfp/bert_ft"])
def test_every_column_is_that_of_float64_on_real_bfloat16(name, asset):
    package, _, inside = name.partition("/")
    weights = in_bfloat16(asset(package) / inside)
    automatic = specdiag.analyze(weights, device="cpu")
    require_equal(automatic, specdiag.analyze(weights, device="cpu", dtype="float64"))
    assert automatic.settings.dtype == "auto"
    assert Counter(r.compute_dtype for r in automatic)["float32"] >= len(automatic) // 2


def test_every_column_is_that_of_float64_on_real_codes(asset):
    options = {"device": "cpu", "include": ("blk.2?.*",)}
    automatic = specdiag.analyze(asset("smollm2-gguf"), **options)
    require_equal(automatic, specdiag.analyze(asset("smollm2-gguf"), dtype="float64", **options))
    assert Counter(r.compute_dtype for r in automatic)["float32"] >= 0.8 * len(automatic)


@pytest.mark.parametrize("tail", ["fix-finger", "clip-xmax"])
def test_rules_that_search_for_themselves_do_so_in_float64(minilm, tail):
    weights = {name: w for name, w in in_bfloat16(minilm).items() if "layer.5" in name}
    automatic = specdiag.analyze(weights, device="cpu", tail=tail)
    require_equal(automatic, specdiag.analyze(weights, device="cpu", tail=tail, dtype="float64"))
    assert {r.compute_dtype for r in automatic} == {"float64"}


def test_the_rank_check_of_an_audit_sees_every_matrix(minilm):
    assert all(r.matrix_rank is not None for r in specdiag.analyze(in_bfloat16(minilm), device="cpu"))


@pytest.mark.parametrize(
    ("settings", "storage", "dtype"),
    [
        (Settings(), BF16, "float32"),
        (Settings(), F16, "float64"),
        (Settings(), F32, "float64"),
        (Settings(), replace(F32, eps=0.02), "float32"),  # values of 4-bit codes
        (Settings(method="svd"), BF16, "float64"),
        (Settings(dtype="float64"), BF16, "float64"),
        (Settings(dtype="float32"), F32, "float32"),
    ],
)
def test_the_storage_type_decides_what_is_tried(settings, storage, dtype):
    assert first_type(settings, storage.eps) == dtype


@pytest.mark.parametrize("shape", [(64, 64), (200, 200), (256, 1024), (512, 512)])
@pytest.mark.parametrize("kind", ["noise", "offset", "rows", "product"])
def test_rounding_near_the_floor_is_within_the_noise(shape, kind):
    rng = np.random.default_rng(shape[0])
    w = rng.standard_normal(shape)
    if kind == "offset":
        w[:, 0] += 10
    elif kind == "rows":
        w *= np.arange(1, shape[0] + 1)[:, None] ** -0.5
    elif kind == "product":
        w = w @ rng.standard_normal((shape[1], shape[0] // 2)) @ rng.standard_normal((shape[0] // 2, shape[1]))
    stack = BF16.narrow(w)[None]
    single, double = (spectrum(stack, BF16, dtype=dtype) for dtype in ("float32", "float64"))
    low = double.eigenvalues < 100 * double.floor
    assert np.abs(single.eigenvalues - double.eigenvalues)[low].max(initial=0) < single.noise / 2
    assert single.n_zero in (None, double.n_zero)


def made_of(eigenvalues, shape, storage=BF16):
    """A float32 spectrum of given eigenvalues."""
    slices = np.sort(np.asarray(eigenvalues, np.float64))[None]
    return assemble(slices, float(slices.sum()), (1, *shape), storage, "gram", "float32")


def test_zeros_that_float32_cannot_tell_are_unknown():
    values = np.linspace(1, 2, 100)
    clear = made_of(values, (100, 100))
    rest = values[1:].sum()
    at_floor = clear.floor * rest / (values.sum() - clear.floor)  # the floor is a share of the sum
    assert clear.n_zero == 0
    assert made_of([*values[1:], at_floor * 1.0001], (100, 100)).n_zero is None
    assert made_of([*values[1:], at_floor / 2], (100, 100)).n_zero == 1
    assert made_of(values, (100, 100), F32).n_zero is None


def test_counts_that_rounding_decides_send_a_matrix_to_float64():
    rng = np.random.default_rng(3)
    values = np.linalg.svd(rng.standard_normal((100, 250)), compute_uv=False) ** 2
    plain = made_of(values, (100, 250))
    assert decides_nothing(plain, ks_optimal(plain.eigenvalues), (100, 250))
    bound = metrics.spike_bound((100, 250), metrics.mp_edge(plain.eigenvalues, (100, 250)))
    spiked = made_of([*values[1:], bound * (1 + 1e-9)], (100, 250))
    assert not decides_nothing(spiked, None, (100, 250))
    tied = ks_optimal(plain.eigenvalues)._replace(lead=1e-9)
    assert not decides_nothing(plain, tied, (100, 250))


def test_a_product_that_ends_near_one_is_uncertain():
    """The two largest have the product 1 + 1e-9 where the mean is 1: rounding decides whether two or three are counted."""
    largest = [3.2, (1 + 1e-9) / 3.2]
    values = np.sort([*largest, *[(4 - sum(largest)) / 2] * 2])
    assert metrics.is_detx_certain(values, 0) is True
    assert metrics.is_detx_certain(values, 1e-6) is False
    assert metrics.is_detx_certain(np.array([0.1, 0.5, 1.0, 4.0]), 1e-6) is True


def test_the_lead_of_a_threshold_is_that_over_all_others():
    rng = np.random.default_rng(0)
    values = np.sort(rng.pareto(1.5, 300) + 1)
    best = ks_optimal(values)
    distances = []
    for start in range(len(values) - 1):
        tail = values[start:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        model = 1 - (tail / tail[0]) ** (1 - alpha)
        distances.append(np.abs(model - np.arange(len(tail)) / len(tail)).max())
    first, second = np.sort(distances)[:2]
    assert best.ks == pytest.approx(first)
    assert 0 < best.lead <= (second - first) * (1 + 1e-9)


def test_a_spectrum_too_wide_for_float32_is_solved_in_float64():
    w = with_singular_values(np.logspace(0, -3, 120), (120, 160))
    (record,) = specdiag.analyze({"model.layers.0.mlp.up_proj.weight": torch.from_numpy(w).bfloat16()}, device="cpu")
    assert record.compute_dtype == "float64"
