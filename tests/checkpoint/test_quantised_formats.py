"""Every quantised format from a written file to its values, and the error of its rounding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from quantised_files import ALL, QUERY, SCALE, STEM, opened, reasons, weight, written
from quantisers import FORMATS, Format, Quantised
from safetensors.numpy import load_file

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Rounding


@pytest.mark.parametrize("how", ["safetensors", "torch", "memory"])
@pytest.mark.parametrize("name", ALL)
def test_written_formats_are_read_back(tmp_path: Path, name: str, how: str) -> None:
    form: Format = ALL[name]
    quantised: Quantised = form.quantise(STEM, weight())
    tensors = quantised.tensors | {"layers.0.norm.weight": torch.ones(256)}
    checkpoint = (
        opened(tensors, form.config)
        if how == "memory"
        else open_checkpoint(written(tmp_path, tensors, form.config, how))
    )
    (matrix,) = checkpoint.matrices
    assert (matrix.name, matrix.shape, matrix.module.role) == (QUERY, (96, 256), "q")
    assert (matrix.storage_dtype, matrix.dequantized) == (form.dtype, True)
    read = matrix.tensor.read(None)
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_allclose(read, quantised.values, rtol=2e-7, atol=0)
    assert np.array_equal(matrix.tensor.read(5), read[5])
    assert np.array_equal(matrix.load().numpy(), read)
    others = {name: why for name, why in reasons(checkpoint).items() if name != "layers.0.norm.weight"}
    assert set(others.values()) <= {SCALE}
    assert len(others) + 2 == len(tensors) == checkpoint.n_tensors
    left = ("quant_state", "weight_format", "weight_shape")
    counted = [t for n, t in quantised.tensors.items() if not any(word in n for word in left)]
    assert matrix.tensor.nbytes == sum(t.numel() * t.element_size() for t in counted)
    said = "Read 1 tensor of F8_E4M3 as plain numbers: nothing in the checkpoint scales them."
    assert checkpoint.notes == (said if name == "fp8-plain" else f"Dequantised 1 tensor from {form.dtype}.",)


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_of_rounding_is_known(minilm: Path, name: str) -> None:
    """`Rounding.error` from the dequantised values alone, against the truth, on real weights."""
    found = []
    for stem, w in blocks(minilm).items():
        quantised = FORMATS[name].quantise(stem, w)
        (matrix,) = opened(quantised.tensors, FORMATS[name].config).matrices
        assert matrix.tensor.rounding is not None
        dequantised = matrix.tensor.read(None)
        truth = np.sqrt(np.mean((dequantised - w) ** 2) / np.mean(dequantised**2))
        found.append(matrix.tensor.rounding.error(dequantised) / truth)
    assert np.median(found) == pytest.approx(1, abs=0.15)
    assert min(found) > 0.7


def blocks(minilm: Path) -> dict[str, np.ndarray]:
    stored = load_file(minilm / "model.safetensors")
    names = [n for n, w in stored.items() if w.ndim == 2 and ("layer.0." in n or "layer.3." in n)]
    return {name.removesuffix(".weight"): stored[name] for name in names}


def test_rounding_of_nothing_and_of_less_than_a_group() -> None:
    assert Rounding(group=64, levels=16).error(np.zeros((4, 4), np.float32)) == 0
    assert Rounding(levels=3).error(np.array([-1, 0, 1], np.float32)) == pytest.approx((1 / 12 / (2 / 3)) ** 0.5)
    assert Rounding(group=64, levels=16).error(np.full((2, 2), np.inf, np.float32)) == 0
    values = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    for group in (1, 3, 16, 32, 48, 96):
        steps = np.ptp(values.reshape(-1, group), axis=1).astype(np.float64) / 15
        expected = (np.mean(steps**2) / 12 / np.mean(values**2, dtype=np.float64)) ** 0.5
        assert Rounding(group=group, levels=16).error(values) == pytest.approx(expected, rel=1e-6)


def test_int8_of_a_real_package_against_its_original(fracast: Path) -> None:
    """Every matrix is in both files, the rounding noise is as estimated, and the exponents are close."""
    original, codes = (open_checkpoint(fracast, file=f"model{kind}.safetensors") for kind in ("", ".int8"))
    assert "Dequantised 19 tensors from int8." in codes.notes
    found = {m.key: m for m in codes.matrices}
    assert {m.key: m.shape for m in original.matrices} == {m.key: m.shape for m in codes.matrices}
    assert Counter(reasons(codes).values())[SCALE] == 19
    for exact, coarse in ((m, found[m.key]) for m in original.matrices):
        difference = (coarse.load() - exact.load()).numpy()
        if not coarse.dequantized:
            assert not difference.any()
            continue
        truth = np.sqrt(np.mean(difference**2) / np.mean(coarse.load().numpy() ** 2))
        assert 8 * coarse.float_type(coarse.load().numpy()).eps / 4 == pytest.approx(truth, rel=0.15)
    one, other = (specdiag.analyze(fracast / f"model{kind}.safetensors") for kind in ("", ".int8"))
    pairs = [(r.alpha, other[r.key].alpha) for r in one if r.alpha and other[r.key].alpha]
    assert max(abs(a / b - 1) for a, b in pairs) < 0.01
    assert {r.dequantized for r in one} == {False}
