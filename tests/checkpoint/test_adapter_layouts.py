"""The layouts in which PEFT, diffusers and kohya's scripts write adapters, against products formed in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import LORA, QUERY, assert_spectrum, dense, lora, random, row, write
from helpers import esd
from models import write_checkpoint
from read_back import values
from safetensors.numpy import save_file

from specdiag.checkpoint.adapters.names import dotted
from specdiag.checkpoint.reader import open_checkpoint


def test_gpt2_stores_in_out_and_is_split_by_columns(tmp_path: Path) -> None:
    module = "transformer.h.0.attn.c_attn"
    tensors = lora(module, 192, 64)
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA | {"fan_in_fan_out": True}))
    product = dense(tensors, module, 2.0).T
    for i, part in enumerate("qkv"):
        assert_spectrum(checkpoint, f"{module}.weight[{part}]", product[:, 64 * i : 64 * (i + 1)])
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert stored - 3 < sum(m.tensor.nbytes for m in checkpoint.matrices) <= stored


def test_fused_rows_are_split(tmp_path: Path) -> None:
    gate_up, down = "model.layers.0.mlp.gate_up_proj", "model.layers.0.mlp.down_proj"
    tensors = lora(gate_up, 320, 64) | lora(down, 64, 160)
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA))
    product = dense(tensors, gate_up, 2.0)
    assert_spectrum(checkpoint, f"{gate_up}.weight[gate]", product[:160])
    assert_spectrum(checkpoint, f"{gate_up}.weight[up]", product[160:])


def test_grouped_rows_are_split(tmp_path: Path) -> None:
    """GPT-NeoX lays q, k and v of a head together: [heads, 3, head_dim] rows."""
    module = "gpt_neox.layers.0.attention.query_key_value"
    tensors = lora(module, 192, 64)
    (tmp_path / "config.json").write_text('{"model_type": "gpt_neox", "num_attention_heads": 4, "hidden_size": 64}')
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA))
    product = dense(tensors, module, 2.0).reshape(4, 3, 16, 64)
    for i, part in enumerate("qkv"):
        assert_spectrum(checkpoint, f"{module}.weight[{part}]", product[:, i].reshape(64, 64))


def test_what_cannot_be_split_is_one_matrix_with_a_note(tmp_path: Path) -> None:
    module = "transformer.h.0.self_attention.query_key_value"
    tensors = lora(module, 160, 64)
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA))
    assert_spectrum(checkpoint, f"{module}.weight", dense(tensors, module, 2.0))
    assert any("could not be split" in note for note in checkpoint.notes)


def test_embeddings_are_stored_the_other_way_round(tmp_path: Path) -> None:
    """PEFT saves the table beside its update: both are rows."""
    name = "base_model.model.model.embed_tokens"
    table, a, b = random(96, 64, seed=5), random(4, 96), random(64, 4)
    tensors = {f"{name}.base_layer.weight": table, f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA | {"r": 4}))
    assert [m.key for m in checkpoint.matrices] == ["model.embed_tokens.weight", "model.embed_tokens.weight[delta]"]
    product = 4.0 * (b @ a).T
    matrix = row(checkpoint, "model.embed_tokens.weight[delta]")
    assert (matrix.shape, matrix.module.role) == ((96, 64), "embed")
    np.testing.assert_allclose(esd(matrix.load().numpy())[::-1], esd(product)[::-1][:4], rtol=1e-5)
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": table, f"{QUERY}.weight": random(64, 64)})
    merged = open_checkpoint(tmp_path, base=base)
    np.testing.assert_allclose(values(merged, "model.embed_tokens.weight"), table + product, rtol=1e-5, atol=1e-5)
    assert np.array_equal(values(merged, f"{QUERY}.weight"), random(64, 64))


def test_convolutions_are_one_flat_matrix(tmp_path: Path) -> None:
    a, b, w = random(4, 6, 3, 3), random(12, 4, 1, 1), random(12, 6, 3, 3, seed=3)
    tensors = {"base_model.model.conv1.lora_A.weight": a, "base_model.model.conv1.lora_B.weight": b}
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA | {"r": 4, "lora_alpha": 8}))
    product = 2.0 * b.reshape(12, 4).astype(np.float64) @ a.reshape(4, 54)
    assert_spectrum(checkpoint, "conv1.weight", product)
    assert row(checkpoint, "conv1.weight").module.role == "conv"
    merged = open_checkpoint(tmp_path, base=write_checkpoint(tmp_path / "base", {"conv1.weight": w}))
    by_torch = torch.nn.functional.conv2d(torch.from_numpy(a).transpose(0, 1), torch.from_numpy(b)).transpose(0, 1)
    np.testing.assert_allclose(values(merged, "conv1.weight"), w + 2 * by_torch.numpy(), rtol=1e-5, atol=1e-5)


def test_the_fused_projection_of_torch_attention(tmp_path: Path) -> None:
    """PEFT hangs it on the module itself, and that of out_proj below a base_layer."""
    tensors = lora("attn", 48, 16, r=4) | lora("attn.base_layer.out_proj", 16, 16, r=4)
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    assert sorted(m.key for m in checkpoint.matrices) == [
        "attn.in_proj_weight[k]", "attn.in_proj_weight[q]", "attn.in_proj_weight[v]", "attn.out_proj.weight",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("down", "up", "module"),
    [
        ("{}.lora_down.weight", "{}.lora_up.weight", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("{}.lora.down.weight", "{}.lora.up.weight", "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
        ("{}.lora_A.weight", "{}.lora_B.weight", "transformer.transformer_blocks.0.attn.to_v"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"),
    ],
)  # fmt: skip
def test_diffusers_and_kohya(tmp_path: Path, down: str, up: str, module: str) -> None:
    a, b = random(8, 64), random(96, 8)
    tensors = {down.format(module): a, up.format(module): b, f"{module}.alpha": np.array(4, np.float32)}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert_spectrum(checkpoint, f"{module}.weight", 0.5 * b.astype(np.float64) @ a)
    matrix = row(checkpoint, f"{module}.weight")
    assert (matrix.module.family, matrix.module.role in ("q", "k", "v", "o")) == ("attention", True)
    assert not any("No scale" in note for note in checkpoint.notes)


def test_flattened_names_find_their_base(tmp_path: Path) -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b, w = random(8, 64), random(96, 8), random(96, 64, seed=3)
    flat = f"lora_unet_{module.replace('.', '_')}"
    assert dotted(flat) == module
    save_file({f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}, tmp_path / "x.safetensors")
    base = write_checkpoint(tmp_path / "base", {f"{module}.weight": w, "conv_in.weight": random(8, 4, 3, 3)})
    merged = open_checkpoint(tmp_path / "x.safetensors", base=base)
    np.testing.assert_allclose(values(merged, f"{module}.weight"), w + b @ a, rtol=1e-5, atol=1e-5)
