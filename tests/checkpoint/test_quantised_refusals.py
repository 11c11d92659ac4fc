"""Quantised weights that are not understood are refused by name, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from quantised_files import I8, I32, QUERY, STEM, U8, nf4_of, opened, reasons, weight
from quantisers import FORMATS, VARIANTS, Tensors
from read_back import values

from specdiag.errors import SourceError


def refused(tensors: Tensors, config: Mapping[str, Any] | None = None, name: str = QUERY) -> str:
    checkpoint = opened(tensors, config)
    assert not [m for m in checkpoint.matrices if m.name.startswith(STEM)]
    assert len(checkpoint.skipped) == len(tensors)
    reason = reasons(checkpoint)[name]
    assert reason.startswith("quantised or packed weights (")
    return reason.partition("): ")[2]


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
        values(opened(tensors, form.config), QUERY)


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
    assert values(opened(nf4_of(GOOD_STATE)), QUERY).shape == (2, 2)
