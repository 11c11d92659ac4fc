"""Adapters merged into their base: W + delta, and what stands in for W."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import ATTENTION, LORA, QUERY, Arrays, assert_spectrum, dense, lora, random, row, write
from helpers import esd
from models import write_checkpoint
from read_back import values

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import UsageError


@pytest.mark.parametrize("transposed", [False, True])
def test_dora(tmp_path: Path, transposed: bool) -> None:
    """m (W + s B A) / ||W + s B A||, the norm over the inputs of each output."""
    module = "transformer.h.0.attn.c_proj"
    tensors = lora(module, 96, 64)
    m = 1 + np.abs(random(96, seed=9))
    tensors[f"base_model.model.{module}.lora_magnitude_vector"] = m
    config = LORA | {"use_dora": True, "fan_in_fan_out": transposed}
    w = random(96, 64, seed=3)
    base = write_checkpoint(tmp_path / "base", {f"{module}.weight": w.T if transposed else w}, {"model_type": "gpt2"})
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
    base = write_checkpoint(tmp_path / "base", {f"{module}.weight": w})
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
    base = write_checkpoint(
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
    base = write_checkpoint(tmp_path / "base", {"model.embed_tokens.weight": table, f"{QUERY}.weight": random(64, 64)})
    merged = values(open_checkpoint(tmp_path, base=base), "model.embed_tokens.weight")
    table[[3, 7]] = new
    assert np.array_equal(merged, table)


@pytest.mark.parametrize(("adapted", "held"), [("", "language_model."), ("bert.", ""), ("", "")])
def test_prefixes_of_the_base_may_differ(tmp_path: Path, adapted: str, held: str) -> None:
    module, name = f"{adapted}layers.0.self_attn.q_proj", f"{held}layers.0.self_attn.q_proj.weight"
    head, w = random(96, 64, seed=8), random(96, 64, seed=3)
    tensors = lora(module, 96, 64) | {f"base_model.model.{adapted}lm_head.weight": head}
    weights = {name: w, "vision.layers.1.self_attn.q_proj.weight": w, f"{held}lm_head.weight": w}
    merged = open_checkpoint(write(tmp_path, tensors, LORA), base=write_checkpoint(tmp_path / "base", weights))
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


def test_a_pipeline_is_no_base_but_its_component_is(tmp_path: Path) -> None:
    name = "mid_block.attentions.0.to_q.weight"
    write_checkpoint(tmp_path / "pipe" / "unet", {name: (w := random(96, 64, seed=3))})
    (tmp_path / "pipe" / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    tensors = lora("unet.mid_block.attentions.0.to_q", 96, 64)
    write(tmp_path / "adapter", tensors)
    with pytest.raises(UsageError, match="pipe has several components: give the folder of one as base="):
        open_checkpoint(tmp_path / "adapter", base=tmp_path / "pipe")
    merged = values(open_checkpoint(tmp_path / "adapter", base=tmp_path / "pipe" / "unet"), name)
    product = dense(tensors, "unet.mid_block.attentions.0.to_q", 1.0)
    np.testing.assert_allclose(merged, w + product, rtol=1e-5, atol=1e-5)


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
    base, full = (
        write_checkpoint(tmp_path / "base", weights, config),
        write_checkpoint(tmp_path / "full", merged, config),
    )

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
        assert got.square_alpha == pytest.approx(expected.square_alpha, rel=1e-9)
        assert (got.role, got.layer, got.digest) == (expected.role, expected.layer, expected.digest)
