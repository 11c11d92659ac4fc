"""Quantised weights: every format from a written file to its values, real files, damaged ones, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import with_singular_values
from hypothesis import given, settings
from hypothesis import strategies as st
from quantisers import E2M1, FORMATS, NF4, VARIANTS, Format, Quantised, Tensors, compressed, gpt_oss, int8, pack
from safetensors.numpy import load_file
from safetensors.torch import save_file

import specdiag
from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.quantised.codes import FLOAT8
from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint, Rounding, StoredTensor
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.errors import SourceError

STEM = "layers.0.self_attn.q_proj"
QUERY = f"{STEM}.weight"
SCALE = "scale of a quantised tensor"
ALL = FORMATS | VARIANTS


def weight(rows: int = 96, cols: int = 256) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32) * np.float32(0.02)


def written(folder: Path, tensors: Tensors, config: Mapping[str, Any], how: str = "safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if how == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        torch.save(tensors, folder / "model.pt")
    return folder


def reasons(checkpoint: Checkpoint) -> dict[str, str]:
    return {entry.name: entry.reason for entry in checkpoint.skipped}


def opened(tensors: Tensors, config: Mapping[str, Any] | None = None) -> Checkpoint:
    return from_state_dict(tensors, config=config)


def values(checkpoint: Checkpoint, name: str = QUERY) -> np.ndarray:
    return next(m for m in checkpoint.matrices if m.name == name).tensor.read(None)


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


def test_int8_of_a_real_package_against_its_original(fracast: Path) -> None:
    """Every matrix of both files, the noise what it is said to be, the exponents close."""
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
    one, other = (specdiag.analyze(fracast / f"model{kind}.safetensors", square=False) for kind in ("", ".int8"))
    pairs = [(r.alpha, other[r.key].alpha) for r in one if r.alpha and other[r.key].alpha]
    assert max(abs(a / b - 1) for a, b in pairs) < 0.01
    assert {r.dequantized for r in one} == {False}


# Exactly written files, by hand from the sources that the docstrings name


def test_the_order_of_awq() -> None:
    """Eight codes of a word, from the lowest: outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    word = torch.tensor([[0x75316420]], dtype=torch.int32).expand(8, 1).contiguous()
    tensors = {f"{STEM}.qweight": word, f"{STEM}.qzeros": torch.zeros(1, 1, dtype=torch.int32)}
    checkpoint = opened(tensors | {f"{STEM}.scales": torch.full((1, 8), 2.0)})
    assert np.array_equal(values(checkpoint), np.tile(2.0 * np.arange(8)[:, None], 8))


def test_the_zeros_of_both_gptq_versions() -> None:
    """0x77777777 stands for 8 in the first version and for 7 in the second; the codes are 0 to 7 down a column."""
    stored = {
        f"{STEM}.qweight": torch.tensor([[0x76543210, 0x76543210]], dtype=torch.int32).repeat(1, 4),
        f"{STEM}.qzeros": torch.tensor([[0x77777777]], dtype=torch.int32),
        f"{STEM}.scales": torch.ones(1, 8, dtype=torch.float16),
    }
    said = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    for form, zero in (("gptq", 8), ("gptq_v2", 7), (None, 8)):
        config = {"quantization_config": said | ({"checkpoint_format": form} if form else {})}
        assert np.array_equal(values(opened(stored, config)), np.tile(np.arange(8.0) - zero, (8, 1)))


def test_three_bits_cross_words() -> None:
    """Code 10 of GPTQ's 32 has two bits in the first word and one in the second: 0b101 is 0b01 << 30 and 0b1."""
    words = pack(np.array([[0] * 10 + [5] + [0] * 21]), 3)
    assert [int(w) & 0xFFFFFFFF for w in words[0]] == [1 << 30, 1, 0]


def test_e2m1_and_nf4_halves() -> None:
    """The low half comes first in mxfp4, the high half in bitsandbytes."""
    byte = torch.full((2, 16), 0x72, dtype=torch.uint8)
    checkpoint = opened({QUERY: byte, f"{QUERY}_scale": torch.full((2, 1), 128, dtype=torch.uint8)})
    assert values(checkpoint)[0, :2].tolist() == [2 * 1.0, 2 * 6.0]
    assert (E2M1[2], E2M1[7]) == (1, 6)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 2]}
    tensors = nf4_of(state) | {QUERY: torch.tensor([[0x0F], [0x70]], dtype=torch.uint8)}
    assert values(opened(tensors)).tolist() == [[-2, 2], [0, -2]]


def nf4_of(state: object) -> Tensors:
    said = state if isinstance(state, bytes) else json.dumps(state).encode()
    return {
        QUERY: torch.zeros(2, 1, dtype=torch.uint8),
        f"{QUERY}.absmax": torch.tensor([2.0]),
        f"{QUERY}.quant_map": torch.from_numpy(NF4.copy()),
        f"{QUERY}.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(said or b" "), dtype=torch.uint8),
    }


@pytest.mark.parametrize(("name", "kind"), [
    ("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2), ("F8_E4M3FNUZ", torch.float8_e4m3fnuz),
    ("F8_E5M2FNUZ", torch.float8_e5m2fnuz), ("F8_E8M0", torch.float8_e8m0fnu),
])  # fmt: skip
def test_every_code_of_fp8(name: str, kind: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(kind).float().numpy()
    assert np.array_equal(FLOAT8[name], expected, equal_nan=True)


def test_int8_by_groups_that_a_configuration_knows() -> None:
    codes, scales = torch.arange(-64, 64, dtype=I8).reshape(2, 64), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    said = {"config_groups": {"a": {"weights": {"num_bits": 8}}}}
    checkpoint = opened({QUERY: codes, f"{QUERY}_scale": scales}, {"quantization_config": said})
    assert np.array_equal(values(checkpoint), codes * scales.repeat_interleave(32, 1))


def test_layers_of_other_bits_than_the_configuration_says() -> None:
    """GPTQModel writes exceptions as patterns; the shapes know."""
    form = FORMATS["gptq8"]
    tensors = form.quantise(STEM, weight()).tensors
    (matrix,) = opened(tensors, FORMATS["gptq4"].config).matrices
    assert matrix.storage_dtype == "gptq-int8"
    assert np.array_equal(matrix.tensor.read(None), form.quantise(STEM, weight()).values)


def test_fp8_blocks_of_a_size_that_does_not_divide(tmp_path: Path) -> None:
    w, scales = torch.ones(5, 7).to(torch.float8_e4m3fn), torch.arange(1.0, 7).reshape(2, 3)
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 3]}}
    folder = written(tmp_path, {QUERY: w, f"{QUERY}_scale_inv": scales}, config)
    expected = scales.repeat_interleave(4, 0)[:5].repeat_interleave(3, 1)[:, :7]
    assert np.array_equal(values(open_checkpoint(folder)), expected)


@pytest.mark.parametrize("scale", [(3, 1, 1), (3,), (3, 64, 1), (3, 1, 48), (1,), ()])
def test_stacked_fp8_experts(tmp_path: Path, scale: tuple[int, ...]) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    codes = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.rand(scale)
    for how in ("safetensors", "torch"):
        held = open_checkpoint(written(tmp_path / how, {name: codes, f"{name}_scale_inv": scales}, {}, how))
        (tensor,) = {id(m.tensor): m.tensor for m in held.matrices}.values()
        shaped = scales[:, None, None] if scale == (3,) else scales
        assert np.array_equal(tensor.read(None), codes.float() * shaped)
        assert np.array_equal(tensor.read(2), tensor.read(None)[2])
        assert len(held.matrices) == 6


def counted(tensors: list[StoredTensor], seen: list[tuple[str, int | None]]) -> list[StoredTensor]:
    def wrap(tensor: StoredTensor) -> StoredTensor:
        def read(index: int | None = None) -> Any:
            seen.append((tensor.name, index))
            return tensor.read(index)

        return replace(tensor, read=read)

    return [wrap(tensor) for tensor in tensors]


def test_gpt_oss_experts_are_turned_and_read_one_by_one() -> None:
    w = np.stack([weight(64, 96), 2 * weight(64, 96)])
    quantised = gpt_oss("model.layers.0.mlp.experts.gate_up_proj", w)
    seen: list[tuple[str, int | None]] = []
    held, notes = dequantise(counted(list_tensors(quantised.tensors, "x"), seen), {"model_type": "gpt_oss"})
    assert (held[0].name, held[0].shape, held[0].dtype) == (
        "model.layers.0.mlp.experts.gate_up_proj",
        (2, 96, 64),
        "mxfp4",
    )
    assert held[1].reason == SCALE
    assert notes == ["Dequantised 1 tensor from mxfp4."]
    assert seen == []
    assert np.array_equal(held[0].read(1), quantised.values[1])
    assert {index for _, index in seen} == {1}
    assert np.array_equal(held[0].read(None), quantised.values)
    checkpoint = opened(quantised.tensors, {"model_type": "gpt_oss"})
    assert Counter(m.module.role for m in checkpoint.matrices) == {"gate": 2, "up": 2}
    assert {m.shape for m in checkpoint.matrices} == {(96, 32)}


def test_two_codes_in_int8() -> None:
    """DeepSeek-V4 keeps fp4 experts as int8 of half the width, with powers of two for each 32."""
    codes = torch.full((4, 32), 0x22, dtype=torch.int8)
    tensors = {
        QUERY: codes,
        f"{QUERY}_scale_inv": torch.full((4, 2), 126, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    }
    checkpoint = opened(tensors)
    assert checkpoint.matrices[0].storage_dtype == "mxfp4"
    assert np.array_equal(values(checkpoint), np.full((4, 64), 0.5))


def test_several_formats_in_one_checkpoint() -> None:
    """As released: fp8 attention, fp4 experts, a float head; a note for each format, the order as it was stored."""
    tensors: Tensors = {"lm_head.weight": torch.ones(8, 8)}
    tensors |= ALL["fp8-block"].quantise(STEM, weight(128, 128)).tensors
    tensors |= ALL["mxfp4-quark"].quantise("layers.0.mlp.up_proj", weight()).tensors
    tensors |= ALL["fp8-block"].quantise("layers.1.self_attn.q_proj", weight(128, 128)).tensors
    checkpoint = opened(tensors)
    assert [m.storage_dtype for m in checkpoint.matrices] == ["F32", "F8_E4M3", "mxfp4", "F8_E4M3"]
    assert checkpoint.notes[:2] == ("Dequantised 2 tensors from F8_E4M3.", "Dequantised 1 tensor from mxfp4.")


def test_tied_codes_are_analysed_once() -> None:
    codes = torch.zeros(8, 8, dtype=torch.int8)
    scale = torch.ones(8, 1)
    names = ("embed_tokens", "lm_head")
    checkpoint = opened({f"{n}.{leaf}": t for n in names for leaf, t in (("weight", codes), ("weight_scale", scale))})
    assert [m.name for m in checkpoint.matrices] == ["embed_tokens.weight"]
    assert reasons(checkpoint)["lm_head.weight"] == "tied to embed_tokens.weight"


# Analysis of dequantised weights


def test_records_are_marked(tmp_path: Path) -> None:
    form = FORMATS["gptq4"]
    report = specdiag.analyze(
        written(tmp_path, form.quantise(STEM, weight(256, 256)).tensors, form.config), square=False
    )
    (record,) = report
    assert (record.key, record.dequantized, record.storage_dtype) == (QUERY, True, "gptq-int4")
    assert record.status == "ok"
    assert record.alpha is not None


def test_what_rounding_alone_makes_is_no_tail() -> None:
    """A matrix of rank 16 in 4 bits has full rank, of noise: that is called low rank, no exponent of the noise is given."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((256, 16)) @ rng.standard_normal((16, 256))).astype(np.float32)
    for name, status in (("gptq4", "low_rank"), ("nf4", "low_rank"), ("int8", "low_rank")):
        form = FORMATS[name]
        checkpoint = opened(form.quantise(STEM, w).tensors, form.config)
        (record,) = specdiag.analyze(checkpoint, square=False)
        assert np.linalg.matrix_rank(values(checkpoint)) > 250
        assert (record.status, record.alpha) == (status, None)


# alpha of the reference notes: a spectrum of exact Pareto quantiles, 256x512, before and after rounding
REFERENCE = {
    1.7: {"fp8-tensor": 1.70903, "int8": 1.70610, "ct4-64": 1.76863},
    2.5: {"fp8-tensor": 2.51626, "int8": 2.50965, "ct4-64": 2.54119},
}


@pytest.mark.parametrize("alpha", REFERENCE)
def test_heavy_tails_look_lighter(alpha: float) -> None:
    """Known results for these spectra, whose bases were random: to 0.01."""
    quantiles = (1 - (np.arange(256) + 0.5) / 256) ** (-1 / (alpha - 1))
    w = with_singular_values(np.sqrt(quantiles), (256, 512)).astype(np.float32)
    before = specdiag.analyze({QUERY: torch.from_numpy(w)}, square=False)[QUERY].alpha
    assert before is not None
    forms = {**FORMATS, "ct4-64": Format("", "int4", compressed(4, 64))}
    for name, expected in REFERENCE[alpha].items():
        after = specdiag.analyze(forms[name].quantise(STEM, w).tensors, square=False)[QUERY].alpha
        assert after == pytest.approx(expected, abs=0.012)
        if name != "int8":
            assert after > before


# Refusals


def refused(tensors: Tensors, config: Mapping[str, Any] | None = None, name: str = QUERY) -> str:
    checkpoint = opened(tensors, config)
    assert not [m for m in checkpoint.matrices if m.name.startswith(STEM)]
    assert len(checkpoint.skipped) == len(tensors)
    reason = reasons(checkpoint)[name]
    assert reason.startswith("quantised or packed weights (")
    return reason.partition("): ")[2]


I32, U8, I8 = torch.int32, torch.uint8, torch.int8
FOREIGN: dict[str, tuple[str, Tensors, dict[str, Any]]] = {
    "HQQ": ("W_q", {"W_q": torch.zeros(8, 8, dtype=U8), "scale": torch.ones(16, 4), "zero": torch.ones(16, 4)}, {}),
    "AQLM": ("codes", {"codes": torch.zeros(8, 1, 2, dtype=torch.int16), "codebooks": torch.ones(2, 256, 1, 8)}, {}),
    "EXL2": ("q_weight", {"q_weight": torch.zeros(4, 8, dtype=I32), "q_scale_max": torch.ones(2)}, {}),
    "EXL3": ("trellis", {"trellis": torch.zeros(2, 2, 16, dtype=torch.int16), "suh": torch.ones(8)}, {}),
    "VPTQ": ("indices", {"indices": torch.zeros(1, 8, 4, dtype=I32), "centroids.weight": torch.ones(1, 64, 8)}, {}),
    "QuIP#": ("Qidxs", {"Qidxs": torch.zeros(8, 2, dtype=torch.int64), "SU": torch.ones(8)}, {}),
    "SpQR": ("dense_weights", {"dense_weights": torch.zeros(8, dtype=torch.int64)}, {}),
    "Marlin": ("B", {"B": torch.zeros(2, 16, dtype=I32), "s": torch.ones(2, 16)}, {}),
    "QQQ": ("B", {"B": torch.zeros(2, 16, dtype=I32), "s_channel": torch.ones(1, 16)}, {}),
    "HIGGS": ("weight", {"weight": torch.zeros(8, 8, dtype=U8), "tables": torch.ones(16, 2)}, {}),
    "marlin-24": ("weight_packed", {"weight_packed": torch.zeros(4, 8, dtype=I32), "meta": torch.zeros(4, 4, dtype=torch.int16)}, {}),
    "sparse-bitmask": ("compressed", {"compressed": torch.ones(8, 4), "bitmask": torch.zeros(8, 1, dtype=U8)}, {}),
    "quanto": ("weight._data", {"weight._data": torch.zeros(8, 8, dtype=I8), "weight._scale": torch.ones(8, 1)}, {}),
    "torchao": ("_weight_qdata", {"_weight_qdata": torch.zeros(8, 8, dtype=I8), "_weight_scale": torch.ones(8, 1)}, {}),
    "EETQ": ("weight", {"weight": torch.zeros(8, 8, dtype=I8), "weight_scales": torch.ones(8)}, {}),
    "BitNet": ("weight", {"weight": torch.zeros(2, 8, dtype=U8), "weight_scale": torch.ones(1)}, {"quant_method": "bitnet"}),
    "AWQ in the layout 'gemv'": (
        "qweight",
        {"qweight": torch.zeros(8, 1, dtype=I32), "qzeros": torch.zeros(1, 1, dtype=I32), "scales": torch.ones(1, 8)},
        {"quant_method": "awq", "version": "gemv"},
    ),
    "GPTQ in the layout 'gptq_p'": (
        "qweight",
        {"qweight": torch.zeros(1, 8, dtype=I32), "qzeros": torch.zeros(1, 1, dtype=I32), "scales": torch.ones(1, 8)},
        {"quant_method": "gptq", "checkpoint_format": "gptq_p"},
    ),
    "fp4 of ComfyUI": (
        "weight",
        {"weight": torch.zeros(8, 8, dtype=U8), "weight_scale": torch.ones(8, 1).to(torch.float8_e4m3fn), "comfy_quant": torch.zeros(9, dtype=U8)},
        {},
    ),
    "bitsandbytes int8 in the order of a kernel": (
        "weight",
        {"weight": torch.zeros(8, 8, dtype=I8), "SCB": torch.ones(8), "weight_format": torch.tensor(2, dtype=U8)},
        {},
    ),
    "MLX: the configuration does not say": (
        "weight",
        {"weight": torch.zeros(8, 4, dtype=torch.uint32), "scales": torch.ones(8, 1), "biases": torch.ones(8, 1)},
        {},
    ),
    "the configuration says that the model is quantised": (
        "weight", {"weight": torch.ones(8, 8).to(torch.float8_e4m3fn)}, {"quant_method": "fp8"},
    ),
    "scales by groups, and no configuration says": (
        "weight", {"weight": torch.zeros(8, 64, dtype=I8), "weight_scale": torch.ones(8, 2)}, {},
    ),
    "the configuration says 4 bits": (
        "weight",
        {"weight": torch.zeros(8, 64, dtype=I8), "weight_scale": torch.ones(8, 1)},
        {"config_groups": {"a": {"weights": {"num_bits": 4}}}},
    ),
    "nothing is known of input_scale": (
        "weight", {"weight": torch.ones(8, 8).to(torch.float8_e4m3fn), "input_scale": torch.ones(1)}, {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("word", FOREIGN)
def test_formats_that_are_refused_by_name(word: str) -> None:
    codes, parts, said = FOREIGN[word]
    config = {"quantization_config": said} if said else {}
    tensors = {f"{STEM}.{leaf}": tensor for leaf, tensor in parts.items()}
    assert word in refused(tensors, config, f"{STEM}.{codes}")


@pytest.mark.parametrize(
    ("name", "drop", "word"),
    [
        ("gptq4", "qzeros", "scales or qzeros are missing"),
        ("gptq4", "scales", "scales or qzeros are missing"),
        ("nf4", "absmax", "without shape, blocksize, quant_map or absmax"),
        ("nvfp4", "weight_scale_2", "nvfp4 without the scale of all groups"),
        ("ct4", "weight_shape", "pack-quantized without"),
        ("mxfp4", "weight_scale", "no scales that are understood belong to them"),
        ("int8", "weight_scale", "no scales that are understood belong to them"),
        ("mlx4", "biases", "MLX in mode None, or without scales and biases"),
    ],
)
def test_parts_that_are_missing(name: str, drop: str, word: str) -> None:
    form = FORMATS[name]
    tensors = {n: t for n, t in form.quantise(STEM, weight()).tensors.items() if not n.endswith(drop)}
    codes = next(iter(tensors))
    assert word in refused(tensors, form.config, codes)


def test_names_of_other_formats_on_float_weights() -> None:
    """W_q is a plain parameter in many models, and so may B and s be."""
    names = ("W_q", "B", "s", "codes", "codebooks", "weight", "tables", "indices")
    tensors = {f"layers.0.attn.{name}": torch.randn(8, 8) for name in names}
    config = {"quantization_config": {"quant_method": "hqq"}}
    for said in ({}, config):
        checkpoint = opened(tensors | {"layers.0.mlp.up_proj.codes": torch.zeros(2, 2, dtype=I8)}, said)
        assert {m.name for m in checkpoint.matrices} == tensors.keys()


def test_a_name_that_is_taken() -> None:
    tensors = FORMATS["gptq4"].quantise(STEM, weight()).tensors
    checkpoint = opened(tensors | {QUERY: torch.ones(4, 4)})
    assert [m.dequantized for m in checkpoint.matrices] == [False]
    assert f"another tensor has the name {QUERY}" in reasons(checkpoint)[f"{STEM}.qweight"]


def test_order_of_groups_that_are_not_there() -> None:
    form = VARIANTS["gptq4-act-order"]
    tensors = form.quantise(STEM, weight()).tensors
    tensors[f"{STEM}.g_idx"][3] = 99
    with pytest.raises(SourceError, match="names groups that are not there"):
        values(opened(tensors, form.config))


GOOD_STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 2]}


@pytest.mark.parametrize(
    "state",
    [
        b"", b"{", b"[]", b"\xff\xff", b'{"shape":' + b"[" * 20_000, b" " * 70_000,
        GOOD_STATE | {"shape": [2, 3]}, GOOD_STATE | {"shape": [2**40, 2**40]}, GOOD_STATE | {"shape": [-2, -2]},
        GOOD_STATE | {"shape": None}, GOOD_STATE | {"shape": [True, 4]}, GOOD_STATE | {"shape": [0, 2]},
        GOOD_STATE | {"blocksize": 0}, GOOD_STATE | {"blocksize": "64"}, GOOD_STATE | {"blocksize": 3},
    ],
)  # fmt: skip
def test_damaged_states_of_bitsandbytes(state: Any) -> None:
    assert "nf4" in refused(nf4_of(state)) or "quant_state" in refused(nf4_of(state))


def test_good_state_of_bitsandbytes() -> None:
    assert values(opened(nf4_of(GOOD_STATE))).shape == (2, 2)


def test_stacks_of_fp8_that_a_file_holds_as_bytes(tmp_path: Path) -> None:
    """safetensors gives the bytes of the whole stack: an item is cut from them."""
    name = "model.layers.0.mlp.experts.down_proj"
    codes = torch.arange(60.0).reshape(5, 4, 3).to(torch.float8_e4m3fn)
    checkpoint = open_checkpoint(written(tmp_path, {name: codes}, {}))
    for matrix in checkpoint.matrices:
        assert matrix.slicer.index is not None
        expected = codes[matrix.slicer.index].float()
        assert torch.equal(matrix.load(), expected) or torch.equal(matrix.load(), expected.T)


# Bundles of tensors that mean harm

LEAVES = (
    "weight", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_packed", "weight_shape", "weight_g_idx",
    "weight_zero_point", "weight_global_scale", "qweight", "qzeros", "scales", "scale", "g_idx", "biases", "SCB",
    "weight_format", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "experts.down_proj", "experts.down_proj_scale", "experts.down_proj_blocks",
    "experts.down_proj_scales", "W_q", "codes", "codebooks", "comfy_quant",
)  # fmt: skip
TYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8": torch.float8_e4m3fn,
    "E8": torch.float8_e8m0fnu, "F4": torch.float4_e2m1fn_x2, "I8": I8, "U8": U8, "I32": I32, "U32": torch.uint32,
    "I64": torch.int64, "I16": torch.int16,
}  # fmt: skip
sizes = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 32, 64])
states = st.fixed_dictionaries(
    {},
    optional={
        "shape": st.one_of(st.lists(st.one_of(st.integers(-4, 130), st.integers(0, 2**70)), max_size=4), st.none()),
        "blocksize": st.one_of(st.integers(-1, 128), st.text(max_size=2)),
        "nested_blocksize": st.one_of(st.integers(-1, 300), st.none()),
        "nested_offset": st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.just(10**400), st.booleans()),
    },
)
settings_of = st.dictionaries(
    st.sampled_from(["bits", "group_size", "quant_method", "sym", "checkpoint_format", "weight_block_size", "mode",
                     "version", "config_groups", "packing_format"]),
    st.one_of(st.integers(-2, 200), st.just(10**400), st.lists(st.integers(-1, 130), max_size=2), st.none(), st.booleans(),
              st.sampled_from(["gptq", "gptq_v2", "awq", "gemm", "mxfp4", "affine", "hqq"]),
              st.fixed_dictionaries({"a": st.fixed_dictionaries({"weights": st.fixed_dictionaries({"num_bits": st.integers()})})})),
)  # fmt: skip


@st.composite
def bundles(draw: st.DrawFn) -> Tensors:
    tensors: Tensors = {}
    for leaf in draw(st.lists(st.sampled_from(LEAVES), min_size=1, max_size=6, unique=True)):
        if "quant_state" in leaf:
            said = json.dumps(draw(states)).encode()
            tensors[f"{STEM}.{leaf}"] = torch.frombuffer(bytearray(said), dtype=U8)
            continue
        kind = TYPES[draw(st.sampled_from(sorted(TYPES)))]
        shape = draw(st.lists(sizes, max_size=4))
        seed = draw(st.integers(0, 2**20))
        if 0 in shape:
            tensors[f"{STEM}.{leaf}"] = torch.empty(shape, dtype=kind)
            continue
        n_bytes = prod(shape) * torch.empty(0, dtype=kind).element_size()
        raw = np.random.default_rng(seed).integers(0, draw(st.sampled_from([2, 256])), n_bytes, np.uint8)
        tensors[f"{STEM}.{leaf}"] = torch.from_numpy(raw).view(kind).reshape(shape)
    return tensors


@st.composite
def mutants(draw: st.DrawFn) -> tuple[Tensors, Mapping[str, Any]]:
    """A good weight of which one part was cut, turned, retyped or dropped."""
    form = ALL[draw(st.sampled_from(sorted(ALL)))]
    tensors = dict(form.quantise(STEM, weight(32, 128)).tensors)
    name = draw(st.sampled_from(sorted(tensors)))
    victim = tensors.pop(name)
    match draw(st.sampled_from(["drop", "turn", "cut", "flat", "retype", "fill"])):
        case "turn":
            tensors[name] = victim.T.contiguous() if victim.ndim == 2 else victim[None]
        case "cut":
            tensors[name] = victim[: len(victim) // 2].clone() if victim.ndim else victim[None]
        case "flat":
            tensors[name] = victim.reshape(-1)
        case "retype":
            tensors[name] = victim.to(torch.float32) if victim.dtype != torch.uint32 else victim.view(I32)
        case "fill":
            tensors[name] = torch.from_numpy(np.full(victim.numel() * victim.element_size(), 0xEE, np.uint8))
            tensors[name] = tensors[name].view(victim.dtype).reshape(victim.shape)
        case _:
            pass
    return tensors, draw(st.sampled_from([form.config, {}]))


def survives(tensors: Tensors, config: Mapping[str, Any]) -> None:
    """Listing and reading gives values, a reason or a SourceError, and allocates little more than the values."""
    stored = list_tensors(tensors, "made up")
    held_bytes = sum(t.nbytes for t in stored)
    tracemalloc.start()
    try:
        held, notes = dequantise(stored, config)
        assert len(held) == len(stored)
        assert all("\n" not in note for note in notes)
        for tensor in held:
            if tensor.rounding is None:
                continue
            try:
                found = tensor.read(None)
            except SourceError:
                continue
            assert found.shape == tensor.shape
            assert found.dtype == np.float32
            if found.ndim:
                assert np.array_equal(tensor.read(len(found) - 1), found[-1], equal_nan=True)
            assert tensor.rounding.error(found) >= 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000 + 160 * held_bytes


@settings(max_examples=400, deadline=None)
@given(bundles(), settings_of)
def test_made_up_bundles(tensors: Tensors, said: dict[str, Any]) -> None:
    survives(tensors, {"quantization_config": said, "quantization": said} if said else {})


@settings(max_examples=300, deadline=None)
@given(mutants())
def test_damaged_weights(mutant: tuple[Tensors, Mapping[str, Any]]) -> None:
    survives(*mutant)


def test_memory_of_dequantising_is_a_few_times_the_result(tmp_path: Path) -> None:
    for name in ("gptq4", "gptq3", "awq4", "nf4", "mxfp4", "ct4", "mlx6", "fp8-block", "int8"):
        form = FORMATS[name]
        quantised = form.quantise(STEM, weight(1024, 1024))
        (matrix,) = opened(quantised.tensors, form.config).matrices
        tracemalloc.start()
        matrix.tensor.read(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3.2 * 4 * 1024 * 1024, name


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    tensors = int8(STEM, weight()).tensors | ALL["fp8-tensor"].quantise("layers.1.self_attn.q_proj", weight()).tensors
    code = (
        "import sys; from specdiag.checkpoint.reader import open_checkpoint\n"
        "for matrix in open_checkpoint(sys.argv[1]).matrices: matrix.tensor.read(None)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, written(tmp_path, tensors, {})], check=True)


def test_float_checkpoints_are_left_alone() -> None:
    tensors = list_tensors({QUERY: torch.ones(4, 4), "scale": torch.ones(4)}, "x")
    assert dequantise(tensors, {"quantization_config": {}}) == (tensors, [])


# The table of docs/quantisation.md

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "quantisation.py"


def benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCHMARK, *map(str, arguments)], capture_output=True, text=True)


def test_the_docs_show_the_committed_figures() -> None:
    done = benchmark("--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_benchmark_gives_its_committed_figures(tmp_path: Path) -> None:
    done = benchmark("--formats", "int8,nf4,q4_1", "--out", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    committed = json.loads((BENCHMARK.parent / "results" / "quantisation.json").read_text())
    assert list(found["formats"]) == ["int8", "nf4", "q4_1"]
    for key, entry in [*found["formats"].items(), ("fracast", found["fracast"])]:
        expected = committed["formats"].get(key, committed["fracast"])
        assert entry["low_rank"] == expected["low_rank"]
        for column in ("alpha", "alpha_square"):
            assert entry[column]["mean"] == pytest.approx(expected[column]["mean"], abs=1e-4)
            assert entry[column]["matrices"] == expected[column]["matrices"]


def test_the_committed_figures_say_what_the_docs_say() -> None:
    """Fewer bits, larger changes; rounding makes tails lighter; its error is known."""
    formats = json.loads((BENCHMARK.parent / "results" / "quantisation.json").read_text())["formats"]
    size = {key: entry["alpha"]["mean_absolute"] for key, entry in formats.items()}
    assert size["bf16"] < size["int8"] < size["fp8-tensor"] < size["gptq4"] < size["gptq3"] < size["gptq2"]
    assert all(entry["alpha"]["mean"] > 0.0015 for entry in formats.values() if entry["bits"] <= 5)
    assert all(entry["alpha"]["mean_absolute"] < 0.006 for entry in formats.values() if entry["bits"] >= 4)
    for key, entry in formats.items():
        if entry["estimated"] is not None:
            known = 0.13 if key in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0") else 0.08
            assert entry["estimated"]["median"] == pytest.approx(1, abs=known), key
