"""Stacked experts, several formats and tied codes in one checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import python
from msgspec.structs import replace
from quantised_files import ALL, QUERY, SCALE, STEM, opened, reasons, weight, written
from quantisers import Tensors, gpt_oss, int8

from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import list_tensors


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


def test_stacks_of_fp8_that_a_file_holds_as_bytes(tmp_path: Path) -> None:
    """safetensors gives the bytes of the whole stack: an item is cut from them."""
    name = "model.layers.0.mlp.experts.down_proj"
    codes = torch.arange(60.0).reshape(5, 4, 3).to(torch.float8_e4m3fn)
    checkpoint = open_checkpoint(written(tmp_path, {name: codes}, {}))
    for matrix in checkpoint.matrices:
        assert matrix.slicer.index is not None
        expected = codes[matrix.slicer.index].float()
        assert torch.equal(matrix.load(), expected) or torch.equal(matrix.load(), expected.T)


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


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    tensors = int8(STEM, weight()).tensors | ALL["fp8-tensor"].quantise("layers.1.self_attn.q_proj", weight()).tensors
    code = (
        "import sys; from specdiag.checkpoint.reader import open_checkpoint\n"
        "for matrix in open_checkpoint(sys.argv[1]).matrices: matrix.tensor.read(None)\n"
        "assert 'torch' not in sys.modules"
    )
    python(code, written(tmp_path, tensors, {}))


def test_float_checkpoints_are_left_alone() -> None:
    tensors = list_tensors({QUERY: torch.ones(4, 4), "scale": torch.ones(4)}, "x")
    assert dequantise(tensors, {"quantization_config": {}}) == (tensors, [])
