"""Adapters as PEFT, diffusers and kohya's scripts write them, against products formed in full.

The names, shapes and settings are those that PEFT 0.21.2 wrote for tiny models (Llama, GPT-2, BERT, Mixtral, with DoRA,
rsLoRA, AdaLoRA, modules_to_save, embeddings, trainable tokens); its merged weights agreed with W + delta here to 1.4e-7
of the norm of the matrix.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import esd
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import specdiag
from specdiag.checkpoint.adapters.names import dotted, take_apart
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError, UsageError
from specdiag.report import load_report

Arrays = dict[str, NDArray[Any]]
ATTENTION = "model.layers.{}.self_attn.{}_proj"
QUERY = ATTENTION.format(0, "q")
LORA: dict[str, Any] = {
    "alpha_pattern": {}, "base_model_name_or_path": "org/base", "bias": "none", "fan_in_fan_out": False,
    "init_lora_weights": True, "lora_alpha": 16, "modules_to_save": None, "peft_type": "LORA", "r": 8,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj"], "target_parameters": None,
    "trainable_token_indices": None, "use_dora": False, "use_rslora": False,
}  # fmt: skip


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def lora(module: str, out: int, inputs: int, r: int = 8, seed: int = 0) -> Arrays:
    """The two factors under PEFT's names."""
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": random(r, inputs, seed=seed),
        f"{name}.lora_B.weight": random(out, r, seed=seed + 1),
    }


def write(folder: Path, tensors: Arrays, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def model(folder: Path, tensors: Arrays, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    return folder


def dense(tensors: Arrays, module: str, scale: float) -> NDArray[np.float64]:
    """s B A, formed."""
    up, down = (tensors[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "BA")
    return scale * up @ down


def row(checkpoint: Checkpoint, key: str) -> Any:
    return next(matrix for matrix in checkpoint.matrices if matrix.key == key)


def values(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """The whole tensor behind a matrix."""
    return next(matrix for matrix in checkpoint.matrices if matrix.name == name).tensor.read(None)


def assert_spectrum(checkpoint: Checkpoint, key: str, product: NDArray[Any]) -> None:
    """The core of a row has the singular values of the product, to float64."""
    matrix = row(checkpoint, key)
    core = matrix.load().numpy()
    assert core.dtype == np.float64
    assert matrix.shape == product.shape
    expected = esd(product)[::-1][: min(core.shape)]
    np.testing.assert_allclose(esd(core)[::-1], expected, rtol=1e-9, atol=1e-12 * expected[0])


# ---------------------------------------------------------------------------------------------- scales and ranks


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 16 / 8**0.5),
        ({"lora_alpha": 3}, 3 / 8),
        ({"alpha_pattern": {"self_attn.q_proj": 40}}, 5.0),
        ({"alpha_pattern": {r"model\.layers\.\d\.self_attn\.q_proj": 4, "q_proj": 40}}, 0.5),
        ({"alpha_pattern": {"^q_proj": 40, "proj": 40}}, 2.0),  # PEFT matches whole segments from the end
        ({"rank_pattern": {"q_proj": 8}, "r": 64}, 2.0),
    ],
)
def test_scales_as_peft_computes_them(tmp_path: Path, changes: dict[str, Any], scale: float) -> None:
    tensors = lora(QUERY, 96, 64)
    checkpoint = open_checkpoint(write(tmp_path, tensors, LORA | changes))
    assert_spectrum(checkpoint, f"{QUERY}.weight", dense(tensors, QUERY, scale))
    matrix = row(checkpoint, f"{QUERY}.weight")
    assert (matrix.module.role, matrix.module.layer, matrix.rank, matrix.storage_dtype) == ("q", 0, 8, "F32")


def test_without_a_scale_the_product_is_taken_and_said_to_be(tmp_path: Path) -> None:
    tensors = lora(QUERY, 96, 64)
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    assert_spectrum(checkpoint, f"{QUERY}.weight", dense(tensors, QUERY, 1.0))
    assert "No scale (alpha) is stored: the products B A are taken as they are." in checkpoint.notes


def test_the_note_names_the_base_model(tmp_path: Path) -> None:
    tensors = lora(QUERY, 96, 64)
    notes = open_checkpoint(write(tmp_path, tensors, LORA)).notes
    assert notes == (
        "The rows are an adapter's updates s B A, not weights; made for org/base: give --base org/base for W + s B A.",
    )
    write(tmp_path, tensors, LORA | {"revision": "v2"})
    assert "--base org/base@v2 " in open_checkpoint(tmp_path).notes[0]


def test_an_activated_lora_is_said_to_be_one(tmp_path: Path) -> None:
    write(tmp_path, lora(QUERY, 96, 64), LORA | {"alora_invocation_tokens": [1, 2]})
    assert any("only after its invocation tokens" in note for note in open_checkpoint(tmp_path).notes)


def test_adalora(tmp_path: Path) -> None:
    """delta = B diag(E) A alpha / (init_r + 1e-5), also where pruning left a smaller rank."""
    a, b, e = random(5, 64), random(96, 5), random(5, 1)
    name = f"base_model.model.{QUERY}"
    config = LORA | {
        "peft_type": "ADALORA", "init_r": 12, "lora_alpha": 32,
        "rank_pattern": {f"{QUERY}.lora_E": [True] * 5 + [False] * 7},
    }  # fmt: skip
    tensors = {f"{name}.lora_A": a, f"{name}.lora_B": b, f"{name}.lora_E": e}
    checkpoint = open_checkpoint(write(tmp_path, tensors, config))
    product = b.astype(np.float64) @ (a * e.astype(np.float64)) * 32 / (12 + 1e-5)
    assert_spectrum(checkpoint, f"{QUERY}.weight", product)
    base = model(tmp_path / "base", {f"{QUERY}.weight": (w := random(96, 64, seed=7))})
    merged = values(open_checkpoint(tmp_path, base=base), f"{QUERY}.weight")
    np.testing.assert_allclose(merged, w + product, rtol=1e-6, atol=1e-6)


def test_bfloat16_factors_are_widened_exactly(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch

    a, b = torch.randn(8, 64).bfloat16(), torch.randn(96, 8).bfloat16()
    name = f"base_model.model.{QUERY}"
    save_torch({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert_spectrum(checkpoint, f"{QUERY}.weight", (b.double() @ a.double()).numpy())
    assert row(checkpoint, f"{QUERY}.weight").storage_dtype == "BF16"


@pytest.mark.parametrize("r", [1, 8, 80])
@pytest.mark.parametrize("shape", [(96, 64), (40, 64), (16, 8)])
def test_any_rank_and_shape(tmp_path: Path, r: int, shape: tuple[int, int]) -> None:
    tensors = lora(QUERY, *shape, r=r)
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    assert_spectrum(checkpoint, f"{QUERY}.weight", dense(tensors, QUERY, 1.0))
    record = specdiag.analyze(tmp_path)[f"{QUERY}.weight"]
    rank = min(r, *shape)
    assert (record.n_eigenvalues, record.matrix_rank) == (rank, rank)
    assert record.status == ("ok" if rank >= 50 else "too_few")
    assert (record.alpha_null, record.alpha_square, record.mp_edge) == (None, None, None)
    product = dense(tensors, QUERY, 1.0)
    assert record.frobenius_norm == pytest.approx(np.linalg.norm(product), rel=1e-9)


def test_long_factors_are_widened_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdiag.checkpoint.adapters import update as adapter_update

    monkeypatch.setattr(adapter_update, "_BLOCK", 100)
    tensors = lora(QUERY, 96, 64)
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    assert_spectrum(checkpoint, f"{QUERY}.weight", dense(tensors, QUERY, 1.0))
    base = model(tmp_path / "base", {f"{QUERY}.weight": (w := random(96, 64, seed=7))})
    merged = values(open_checkpoint(tmp_path, base=base), f"{QUERY}.weight")
    np.testing.assert_allclose(merged, w + dense(tensors, QUERY, 1.0), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------- layouts


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
    base = model(tmp_path / "base", {"model.embed_tokens.weight": table, f"{QUERY}.weight": random(64, 64)})
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
    merged = open_checkpoint(tmp_path, base=model(tmp_path / "base", {"conv1.weight": w}))
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
    base = model(tmp_path / "base", {f"{module}.weight": w, "conv_in.weight": random(8, 4, 3, 3)})
    merged = open_checkpoint(tmp_path / "x.safetensors", base=base)
    np.testing.assert_allclose(values(merged, f"{module}.weight"), w + b @ a, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- W + delta


@pytest.mark.parametrize("transposed", [False, True])
def test_dora(tmp_path: Path, transposed: bool) -> None:
    """m (W + s B A) / ||W + s B A||, the norm over the inputs of each output."""
    module = "transformer.h.0.attn.c_proj"
    tensors = lora(module, 96, 64)
    m = 1 + np.abs(random(96, seed=9))
    tensors[f"base_model.model.{module}.lora_magnitude_vector"] = m
    config = LORA | {"use_dora": True, "fan_in_fan_out": transposed}
    w = random(96, 64, seed=3)
    base = model(tmp_path / "base", {f"{module}.weight": w.T if transposed else w}, {"model_type": "gpt2"})
    naive = w + dense(tensors, module, 2.0)
    for i in range(96):
        naive[i] *= m[i] / np.sqrt(sum(float(v) ** 2 for v in naive[i]))
    merged = values(open_checkpoint(write(tmp_path, tensors, config), base=base), f"{module}.weight")
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged.T if transposed else merged, naive, rtol=1e-6, atol=1e-6)
    alone = open_checkpoint(tmp_path)
    product = dense(tensors, module, 2.0)
    assert_spectrum(alone, f"{module}.weight", product.T if transposed else product)
    assert any(note.startswith("DoRA's update depends on W") for note in alone.notes)


def test_a_square_matrix_is_turned_by_the_config(tmp_path: Path) -> None:
    module, w = "transformer.h.0.attn.c_proj", random(64, 64, seed=3)
    tensors = lora(module, 64, 64)
    base = model(tmp_path / "base", {f"{module}.weight": w})
    for turned in (False, True):
        write(tmp_path, tensors, LORA | {"fan_in_fan_out": turned})
        product = dense(tensors, module, 2.0)
        merged = values(open_checkpoint(tmp_path, base=base), f"{module}.weight")
        np.testing.assert_allclose(merged, w + (product.T if turned else product), rtol=1e-5, atol=1e-5)


def test_full_weights_replace_or_join(tmp_path: Path) -> None:
    """modules_to_save: older PEFT leaves the wrapper in the names, a new head has no counterpart."""
    head, score, table = random(96, 64), random(4, 64), random(100, 64)
    tensors = lora(QUERY, 64, 64) | {
        "base_model.model.lm_head.modules_to_save.weight": head,
        "base_model.model.score.weight": score,
        "base_model.model.model.embed_tokens.weight": table,
        "base_model.model.model.norm.weight": random(64),
    }
    alone = open_checkpoint(write(tmp_path, tensors, LORA | {"modules_to_save": ["lm_head", "score"]}))
    assert np.array_equal(values(alone, "lm_head.weight"), head)
    assert {s.name: s.reason for s in alone.skipped} == {"model.norm.weight": "1-D: bias, norm or vector"}
    assert alone.n_tensors == 6
    base = model(
        tmp_path / "base",
        {"lm_head.weight": random(96, 64, seed=4), "model.embed_tokens.weight": random(96, 64, seed=5)}
        | {f"{QUERY}.weight": random(64, 64)},
    )
    merged = open_checkpoint(tmp_path, base=base)
    for name, expected in (("lm_head", head), ("score", score), ("model.embed_tokens", table)):
        assert np.array_equal(values(merged, f"{name}.weight"), expected)


def test_trained_tokens_are_rows_of_the_table(tmp_path: Path) -> None:
    new, table = random(2, 64), random(96, 64, seed=5)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    config = LORA | {"trainable_token_indices": {"embed_tokens": [3, 7]}}
    write(tmp_path, lora(QUERY, 64, 64) | {name: new}, config)
    skipped = open_checkpoint(tmp_path).skipped
    assert [s.reason for s in skipped] == ["trainable tokens: rows of a table, no matrix"]
    base = model(tmp_path / "base", {"model.embed_tokens.weight": table, f"{QUERY}.weight": random(64, 64)})
    merged = values(open_checkpoint(tmp_path, base=base), "model.embed_tokens.weight")
    table[[3, 7]] = new
    assert np.array_equal(merged, table)


@pytest.mark.parametrize(("adapted", "held"), [("", "language_model."), ("bert.", ""), ("", "")])
def test_prefixes_of_the_base_may_differ(tmp_path: Path, adapted: str, held: str) -> None:
    module, name = f"{adapted}layers.0.self_attn.q_proj", f"{held}layers.0.self_attn.q_proj.weight"
    head, w = random(96, 64, seed=8), random(96, 64, seed=3)
    tensors = lora(module, 96, 64) | {f"base_model.model.{adapted}lm_head.weight": head}
    weights = {name: w, "vision.layers.1.self_attn.q_proj.weight": w, f"{held}lm_head.weight": w}
    merged = open_checkpoint(write(tmp_path, tensors, LORA), base=model(tmp_path / "base", weights))
    np.testing.assert_allclose(values(merged, name), w + dense(tensors, module, 2.0), rtol=1e-5, atol=1e-5)
    assert np.array_equal(values(merged, f"{held}lm_head.weight"), head)
    assert len(merged.matrices) == 3


def test_the_base_may_be_bfloat16_and_sharded(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch

    w, other = torch.randn(96, 64).bfloat16(), torch.randn(96, 64).bfloat16()
    base = tmp_path / "base"
    base.mkdir()
    names = {f"{QUERY}.weight": "a.safetensors", f"{ATTENTION.format(0, 'k')}.weight": "b.safetensors"}
    for (name, file), tensor in zip(names.items(), (w, other), strict=True):
        save_torch({name: tensor}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    tensors = lora(QUERY, 96, 64)
    merged = open_checkpoint(write(tmp_path, tensors, LORA), base=base)
    matrix = row(merged, f"{QUERY}.weight")
    assert (matrix.storage_dtype, matrix.tensor.values_dtype, matrix.rank) == ("BF16", "F32", None)
    expected = w.double().numpy() + dense(tensors, QUERY, 2.0)
    np.testing.assert_allclose(values(merged, f"{QUERY}.weight"), expected, rtol=1e-6, atol=1e-6)
    assert merged.source.base == str(base)
    assert specdiag.analyze(tmp_path, base=base).source.base == str(base)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (lora("model.layers.7.self_attn.q_proj", 96, 64),
         r"adapts 'model.layers.7.self_attn.q_proj' \(96x64\), which .*base does not hold"),
        (lora(QUERY, 96, 32), "by a matrix 96x32, and 'model.layers.0.self_attn.q_proj.weight' in .*base is 96x64"),
        (lora("self_attn.q_proj", 96, 64), "'self_attn.q_proj.weight' may be model.layers.0.* or model.layers.1"),
        (lora(QUERY, 96, 64) | lora("model.layers.0.mlp.experts", 96, 32),
         "cannot be applied whole, for .*experts.lora_A.weight and 1 more .update of stacked experts"),
        ({"base_model.model.x.lora_A.weight": random(8, 4)}, "half of an update"),
        (lora(QUERY, 96, 64) | {f"base_model.model.{QUERY}.lora_magnitude_vector": random(64)},
         "lora_magnitude_vector' has 64 values and not 96"),
        ({"base_model.model.x.lora_A.weight": random(8, 4), "base_model.model.x.lora_B.weight": random(4, 7)},
         "factors of 'x' have the shapes 4x7 and 8x4, which do not multiply"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, tensors: Arrays, sentence: str) -> None:
    base = model(tmp_path / "base", {f"{ATTENTION.format(i, 'q')}.weight": random(96, 64) for i in (0, 1)})
    with pytest.raises(SourceError, match=sentence) as error:
        open_checkpoint(write(tmp_path, tensors), base=base)
    assert "\n" not in str(error.value)


def test_a_pipeline_is_no_base_but_its_component_is(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.to_q.weight"
    model(tmp_path / "pipe" / "unet", {name: (w := random(96, 64, seed=3))})
    (tmp_path / "pipe" / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    tensors = lora("unet.mid_block.attentions.0.to_q", 96, 64)
    write(tmp_path / "adapter", tensors)
    with pytest.raises(UsageError, match="pipe has several components: give the folder of one as --base"):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "pipe")
    merged = values(open_checkpoint(tmp_path / "adapter", base=tmp_path / "pipe" / "unet"), name)
    product = dense(tensors, "unet.mid_block.attentions.0.to_q", 1.0)
    np.testing.assert_allclose(merged, w + product, rtol=1e-5, atol=1e-5)


def test_rank_and_config_must_agree(tmp_path: Path) -> None:
    write(tmp_path, lora(QUERY, 96, 64, r=4), LORA)
    with pytest.raises(SourceError, match=r"factors of rank 4 for 'model.*q_proj', and adapter_config.json says 8"):
        open_checkpoint(tmp_path)
    write(tmp_path, lora(QUERY, 96, 64, r=4), LORA | {"rank_pattern": {"(": 4}})
    with pytest.raises(SourceError, match=r"'\(' is no regular expression"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_initialisations_that_move_the_base(tmp_path: Path, method: str) -> None:
    base = model(tmp_path / "base", {f"{QUERY}.weight": random(96, 64)})
    write(tmp_path, lora(QUERY, 96, 64), LORA | {"init_lora_weights": method})
    with pytest.raises(SourceError, match=r"which changes W too: W \+ delta would count that part twice"):
        open_checkpoint(tmp_path, base=base)
    assert any("moves a part of W into the factors" in note for note in open_checkpoint(tmp_path).notes)


# ---------------------------------------------------------------------------------------------- other methods


@pytest.mark.parametrize(
    ("tensors", "config", "method"),
    [
        ({f"base_model.model.{QUERY}.ia3_l": random(64, 1)}, {"peft_type": "IA3"}, "IA3"),
        ({f"base_model.model.{QUERY}.ia3_l": random(64, 1)}, None, "IA3"),
        ({f"base_model.model.{QUERY}.hada_w1_a": random(64, 8), f"base_model.model.{QUERY}.hada_w1_b": random(8, 64)},
         None, "LoHa"),
        ({f"base_model.model.{QUERY}.lokr_w1": random(8, 8), f"base_model.model.{QUERY}.lokr_w2": random(8, 8)},
         None, "LoKr"),
        ({f"base_model.model.{QUERY}.oft_R.weight": random(8, 28)}, {"peft_type": "OFT"}, "OFT"),
        ({f"base_model.model.{QUERY}.vera_lambda_b": random(64), "base_model.vera_A": random(8, 64)}, None, "VeRA"),
        ({"prompt_embeddings": random(20, 64)}, {"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"prompt_embeddings": random(20, 64)}, None, "prompt or prefix tuning"),
        ({f"base_model.model.{QUERY}.fourierft_spectrum": random(100)}, None, "fourierft"),
        ({f"{QUERY}.lora_a": random(64, 8), f"{QUERY}.lora_b": random(8, 64)}, None, "MLX or GGUF LoRA"),
        (lora(QUERY, 96, 64), LORA | {"use_qalora": True}, "LoRA with use_qalora"),
        (lora(QUERY, 96, 64), {"peft_type": "XLORA"}, "XLORA"),
    ],
)  # fmt: skip
def test_other_methods_are_refused_by_name(
    tmp_path: Path, tensors: Arrays, config: dict[str, Any] | None, method: str
) -> None:
    write(tmp_path, tensors, config)
    with pytest.raises(SourceError, match=rf"holds an adapter \({method}\) that is no product of two factors"):
        open_checkpoint(tmp_path)


def test_nothing_disappears(tmp_path: Path) -> None:
    """What is no update is listed with its reason beside those that are."""
    other = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = lora(QUERY, 96, 64) | {
        f"{other}.hada_w1_a": random(64, 8),
        f"{other}.lora_mid.weight": random(8, 8, 3, 3),
        "base_model.model.lone.lora_A.weight": random(8, 64),
        f"base_model.model.{QUERY}.lora_B.bias": random(96),
        "base_model.model.pruned.lora_A.weight": np.zeros((0, 64), np.float32),
        "base_model.model.pruned.lora_B.weight": np.zeros((96, 0), np.float32),
    }
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    assert {s.name: s.reason for s in checkpoint.skipped} == {
        f"{other}.hada_w1_a": "LoHa, not supported",
        f"{other}.lora_mid.weight": "core tensor of a LoCon update, not supported",
        "base_model.model.lone.lora_A.weight": "half of an update: its other factor is not there",
        f"base_model.model.{QUERY}.lora_B.bias": "bias of an update",
        "base_model.model.pruned.lora_A.weight": "update of rank 0",
        "base_model.model.pruned.lora_B.weight": "update of rank 0",
    }
    assert (len(checkpoint.matrices), checkpoint.n_tensors) == (1, 8)


def test_ordinary_models_are_left_alone() -> None:
    """Names that look a little like an adapter's: SAM's prompt encoder, a snake activation, a poly-encoder."""
    for name in (
        "prompt_encoder.point_embeddings.0.weight", "poly_code_embeddings.weight", "model.shadow_proj.weight",
        "layers.0.attention.w_lora.lora.0.weight", "model.layers.0.self_attn.q_a_proj.weight", "road_net.weight",
    ):  # fmt: skip
        assert take_apart(name).kind == "weight", name
    assert take_apart("decoder.block.0.alpha").kind == "alpha"  # taken for a parameter where no factors are
    checkpoint = specdiag.analyze({"decoder.block.0.alpha": torch.randn(64, 64), "a.weight": torch.randn(64, 64)})
    assert sorted(record.name for record in checkpoint) == ["a.weight", "decoder.block.0.alpha"]


# ---------------------------------------------------------------------------------------------- files and models


def test_the_model_comes_before_an_adapter_beside_it(tmp_path: Path) -> None:
    model(tmp_path, {f"{QUERY}.weight": random(96, 64)})
    write(tmp_path, lora(QUERY, 96, 64), LORA)
    source = open_checkpoint(tmp_path).source
    assert (source.files, source.ignored) == (("model.safetensors",), ("adapter_model.safetensors",))
    picked = open_checkpoint(tmp_path, file="adapter_model.safetensors")
    assert row(picked, f"{QUERY}.weight").rank == 8
    assert row(open_checkpoint(tmp_path / "adapter_model.safetensors"), f"{QUERY}.weight").rank == 8


def test_torch_files_and_live_names(tmp_path: Path) -> None:
    """adapter_model.bin, and a state dict of a model that carries its adapter."""
    a, b, w = torch.randn(8, 64), torch.randn(96, 8), torch.randn(96, 64)
    name = f"base_model.model.{QUERY}"
    torch.save({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    assert_spectrum(open_checkpoint(tmp_path), f"{QUERY}.weight", 2 * (b.double() @ a.double()).numpy())
    state = {
        f"{name}.base_layer.weight": w,
        f"{name}.lora_A.default.weight": a,
        f"{name}.lora_B.default.weight": b,
        "base_model.model.lm_head.original_module.weight": torch.randn(96, 64),
        "base_model.model.lm_head.modules_to_save.default.weight": torch.randn(96, 64),
        "base_model.model.model.norm.weight": torch.ones(64),
    }
    torch.save(state, tmp_path / "model.pt")
    live = open_checkpoint(tmp_path / "model.pt")
    assert [m.key for m in live.matrices] == [f"{QUERY}.weight", f"{QUERY}.weight[delta]", "lm_head.weight"]
    assert_spectrum(live, f"{QUERY}.weight[delta]", 2 * (b.double() @ a.double()).numpy())
    assert np.array_equal(values(live, f"{QUERY}.weight"), w.numpy())
    reasons = {s.name: s.reason for s in live.skipped}
    assert reasons["base_model.model.lm_head.original_module.weight"] == "replaced by modules_to_save"
    with pytest.raises(UsageError, match="holds the weights that its adapter changes: leave out --base"):
        open_checkpoint(tmp_path / "model.pt", base=tmp_path)
    report = specdiag.analyze(state)
    assert report.summary.analysed_parameters == 2 * 96 * 64
    assert any("No scale" in note for note in report.provenance.notes)


class Adapted(torch.nn.Module):
    """The names and settings of a PeftModel with two adapters."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.Module()
        layer.base_layer = torch.nn.Linear(64, 96, bias=False)
        layer.lora_A = torch.nn.ModuleDict({n: torch.nn.Linear(64, 4, bias=False) for n in ("one", "two")})
        layer.lora_B = torch.nn.ModuleDict({n: torch.nn.Linear(4, 96, bias=False) for n in ("one", "two")})
        self.q_proj = layer
        self.peft_config = {
            "one": SimpleNamespace(to_dict=lambda: LORA | {"r": 4, "lora_alpha": 8}),
            "two": SimpleNamespace(to_dict=lambda: LORA | {"r": 4, "lora_alpha": 4}),
        }


def test_a_live_model_knows_its_scales() -> None:
    from specdiag.checkpoint.memory import from_model

    live = Adapted()
    checkpoint = from_model(live)
    assert [m.key for m in checkpoint.matrices] == [
        "q_proj.weight", "q_proj.weight[delta=one]", "q_proj.weight[delta=two]",
    ]  # fmt: skip
    state = {name: value.double().numpy() for name, value in live.state_dict().items()}
    for name, scale in (("one", 2.0), ("two", 1.0)):
        product = scale * state[f"q_proj.lora_B.{name}.weight"] @ state[f"q_proj.lora_A.{name}.weight"]
        assert_spectrum(checkpoint, f"q_proj.weight[delta={name}]", product)
    with pytest.raises(UsageError, match="a model in memory holds its own weights"):
        specdiag.analyze(live, base="org/base")


def test_bad_values_and_fresh_adapters(tmp_path: Path) -> None:
    """PEFT starts with B = 0."""
    tensors = lora(QUERY, 96, 64) | lora(ATTENTION.format(0, "k"), 96, 64) | lora(ATTENTION.format(0, "v"), 96, 64)
    tensors[f"base_model.model.{QUERY}.lora_B.weight"][:] = 0
    tensors[f"base_model.model.{ATTENTION.format(0, 'k')}.lora_A.weight"][3, :2] = np.nan
    tensors[f"base_model.model.{ATTENTION.format(0, 'v')}.lora_B.weight"][0, 0] = np.inf
    report = specdiag.analyze(write(tmp_path, tensors, LORA))
    assert {record.role: (record.status, record.n_nonfinite) for record in report} == {
        "q": ("zero", 0), "k": ("nonfinite", 2), "v": ("nonfinite", 1),
    }  # fmt: skip


def test_fresh_adapters_of_embedding_and_head_are_not_tied(tmp_path: Path) -> None:
    tensors = lora("lm_head", 96, 64) | lora("model.embed_out", 96, 64, seed=5)
    for name in tensors:
        if "lora_B" in name:
            tensors[name][:] = 0
    report = specdiag.analyze(write(tmp_path, tensors, LORA))
    assert [record.status for record in report] == ["zero", "zero"]


# ---------------------------------------------------------------------------------------------- real weights


def derived(rxnfp: Path, r: int, blocks: int = 1) -> tuple[Arrays, Arrays, Arrays]:
    """A LoRA derived from real weights: the r largest singular triplets of fine-tuned - pretrained.

    Returns:
        The adapter under PEFT's names, the base's tensors, and W + delta formed in full.
    """
    base, tuned = (open_checkpoint(rxnfp / name) for name in ("bert_pretrained", "bert_ft"))
    after = {m.name: m for m in tuned.matrices}
    weights, adapter, merged = {}, {}, {}
    for matrix in base.matrices:
        if matrix.module.layer not in range(blocks):
            continue
        name = matrix.name.removeprefix("bert.")
        w = matrix.tensor.read(None)
        u, s, vt = np.linalg.svd(after[name].tensor.read(None).astype(np.float64) - w, full_matrices=False)
        up, down = (u[:, :r] * s[:r] ** 0.5).astype(np.float32), (s[:r, None] ** 0.5 * vt[:r]).astype(np.float32)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        weights[matrix.name] = w
        merged[matrix.name] = (w.astype(np.float64) + up.astype(np.float64) @ down).astype(np.float32)
    return adapter, weights, merged


@pytest.mark.parametrize("r", [8, 64])
def test_a_lora_derived_from_a_real_fine_tune(tmp_path: Path, rxnfp: Path, r: int) -> None:
    adapter, weights, merged = derived(rxnfp, r)
    write(tmp_path / "adapter", adapter, LORA | {"r": r, "lora_alpha": r})
    config = {"model_type": "bert"}
    base, full = model(tmp_path / "base", weights, config), model(tmp_path / "full", merged, config)

    report = specdiag.analyze(tmp_path / "adapter")
    assert len(report) == 6
    for record in report:
        name = f"bert.{record.name}"
        expected = esd(merged[name].astype(np.float64) - weights[name])[-r:]
        np.testing.assert_allclose(report.eigenvalues(record.key)[-4:], expected[-4:], rtol=1e-4)
        assert record.status == ("too_few" if r < 50 else "ok")
        assert (record.alpha is None, record.alpha_null) == (r < 50, None)

    applied, reference = specdiag.analyze(tmp_path / "adapter", base=base), specdiag.analyze(full)
    assert [r.key for r in applied] == [r.key for r in reference]
    for got, expected in zip(applied, reference, strict=True):
        assert got.alpha == pytest.approx(expected.alpha, rel=1e-9)
        assert got.alpha_square == pytest.approx(expected.alpha_square, rel=1e-9)
        assert (got.role, got.layer, got.digest) == (expected.role, expected.layer, expected.digest)


# ---------------------------------------------------------------------------------------------- command line


def run(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "specdiag", "analyze", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Folders `base` and `adapter`: two layers of attention and MLP, an update of rank 8 for each matrix."""
    shapes = {
        f"model.layers.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "self_attn.q_proj": (64, 64), "self_attn.o_proj": (64, 64), "mlp.up_proj": (160, 64),
            "mlp.down_proj": (64, 160),
        }.items()
    }  # fmt: skip
    model(
        tmp_path / "base", {f"{name}.weight": random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    )
    tensors = [lora(name, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())]
    write(tmp_path / "adapter", {name: value for part in tensors for name, value in part.items()}, LORA)
    return tmp_path


def test_analyze_prints_updates_without_exponents(pair: Path) -> None:
    done = run("adapter", cwd=pair)
    assert done.returncode == 0, done.stderr
    assert "The rank of 8 of 8 updates is below 50: stable rank and norms, no exponent." in done.stdout
    assert "heavier-tailed than MLP" not in done.stdout
    assert "made for org/base: give --base org/base for W + s B A" in done.stderr
    assert load_report(pair / "adapter.specdiag.json").source.base is None


def test_analyze_with_a_base(pair: Path) -> None:
    run("adapter", cwd=pair)
    done = run("adapter", "--base", "base", cwd=pair)
    assert done.returncode == 0, done.stderr
    assert "adapter on base; reading adapter_model.safetensors" in done.stderr
    assert "no exponent" not in done.stdout
    report = load_report(pair / "adapter.merged.specdiag.json")
    assert report.source.base == "base"
    assert all(record.alpha is not None for record in report)
    assert len(load_report(pair / "adapter.specdiag.json")) == 8


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["adapter", "--tail", "farms"], 2, "--tail farms looks at the entries of a matrix, and 8 of 8 are updates"),
        (["adapter", "--randomize"], 2, "--randomize looks at the entries of a matrix"),
        (["adapter", "--randomize", "--dry-run"], 2, "--randomize looks at the entries of a matrix"),
        (["base", "--base", "base"], 2, "base is no adapter: leave out --base base"),
        (["adapter", "--base", "adapter"], 2, "adapter is an adapter, or carries one: --base takes the plain model"),
        (["adapter", "--base", "nowhere/at/all"], 3, "no such file or directory"),
        (["a.json", "--base", "base"], 2, "a.json is a saved report, shown as it is: --base needs the checkpoint"),
    ],
)
def test_refusals_of_the_command(pair: Path, args: list[str], code: int, sentence: str) -> None:
    if args[0] == "a.json":
        run("adapter", "-o", "a.json", cwd=pair)
    done = run(*args, cwd=pair)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_factor_is_exit_4(pair: Path) -> None:
    file = pair / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{QUERY}.lora_A.weight"][0, 0] = np.nan
    save_file(tensors, file)
    done = run("adapter", cwd=pair)
    assert done.returncode == 4
    assert f"1 of 8 matrices have no spectrum: {QUERY}.weight (nonfinite: 1 values)" in done.stderr
    assert run("adapter", "--base", "base", cwd=pair).returncode == 4


def test_dry_run_reads_no_values(pair: Path) -> None:
    file = pair / "adapter" / "adapter_model.safetensors"
    data = file.read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    file.write_bytes(data[:header] + b"\xff" * (len(data) - header))
    rows = json.loads(run("adapter", "--dry-run", "-f", "json", cwd=pair).stdout)
    assert sum(r["bytes"] for r in rows) == len(data) - header
    assert run("adapter", "--base", "base", "--dry-run", cwd=pair).returncode == 0
