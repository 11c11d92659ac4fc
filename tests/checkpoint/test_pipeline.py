"""Repositories of several models: a diffusers pipeline, with its variants, in its own folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import random_state
from safetensors.numpy import save_file

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (64, 64),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (64, 96),
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": (512, 64),
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight": (64, 256),
    "conv_in.weight": (64, 4, 3, 3),
    "conv_in.bias": (64,),
}
TEXT = {
    "text_model.encoder.layers.0.self_attn.q_proj.weight": (96, 96),
    "text_model.encoder.layers.0.mlp.fc1.weight": (384, 96),
    "text_model.embeddings.token_embedding.weight": (200, 96),
}
VAE = {
    "decoder.up_blocks.0.attentions.0.to_q.weight": (64, 64),
    "encoder.down_blocks.0.attentions.0.to_q.weight": (64, 64),
}


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """As diffusers saves it, with fp16 variants beside, and one folder of no component."""
    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    for folder, shapes, stem in (
        ("unet", UNET, "diffusion_pytorch_model"),
        ("text_encoder", TEXT, "model"),
        ("vae", VAE, "diffusion_pytorch_model"),
        ("safety_checker", TEXT, "model"),
    ):
        (tmp_path / folder).mkdir()
        values = random_state(shapes)
        save_file(values, tmp_path / folder / f"{stem}.safetensors")
        halves = {name: value.astype(np.float16) for name, value in values.items()}
        save_file(halves, tmp_path / folder / f"{stem}.fp16.safetensors")
        (tmp_path / folder / "config.json").write_text(json.dumps({"_class_name": folder}))
    return tmp_path


def test_every_component_is_read_under_its_own_name(pipeline: Path) -> None:
    checkpoint = open_checkpoint(pipeline)
    found = {m.key: (m.module.role, m.module.family, m.module.component, m.storage_dtype) for m in checkpoint.matrices}
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    assert found[f"{block}.attn1.to_q.weight"] == ("q", "attention", "unet", "F32")
    assert found[f"{block}.ff.net.0.proj.weight[gate]"] == ("gate", "mlp", "unet", "F32")
    assert found["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight"][2] == "text_encoder"
    assert {c for _, _, c, _ in found.values()} == {"unet", "text_encoder", "vae.encoder", "vae.decoder"}
    assert [s.name for s in checkpoint.skipped] == ["unet.conv_in.bias"]
    assert checkpoint.n_tensors == len(UNET) + len(TEXT) + len(VAE)
    assert checkpoint.architecture == "StableDiffusionPipeline"
    assert set(checkpoint.source.files) == {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert "safety_checker/model.safetensors" in checkpoint.source.ignored
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in checkpoint.source.ignored


def test_analysis_of_a_pipeline_equals_that_of_its_parts(pipeline: Path) -> None:
    report = specdiag.analyze(pipeline)
    alone = specdiag.analyze(pipeline, file="text_encoder")
    assert len(alone) == len(TEXT)
    for record in alone:
        assert report[f"text_encoder.{record.key}"].alpha == record.alpha


@pytest.mark.parametrize(("pick", "dtype"), [("vae", "F32"), ("vae/diffusion_pytorch_model.fp16.safetensors", "F16")])
def test_one_component_or_variant_can_be_picked(pipeline: Path, pick: str, dtype: str) -> None:
    checkpoint = open_checkpoint(pipeline, file=pick)
    assert [m.name for m in checkpoint.matrices] == list(VAE)
    assert {m.storage_dtype for m in checkpoint.matrices} == {dtype}


def test_variants_alone_are_read_and_several_are_listed(pipeline: Path) -> None:
    (pipeline / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    checkpoint = open_checkpoint(pipeline, file="vae")
    assert {m.storage_dtype for m in checkpoint.matrices} == {"F16"}
    save_file(random_state(VAE), pipeline / "vae" / "diffusion_pytorch_model.fp32.safetensors")
    with pytest.raises(UsageError, match=r"2 different models: .*fp16.*fp32.*file="):
        open_checkpoint(pipeline)


def test_a_component_without_its_weights_is_named(pipeline: Path) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"unet/diffusion_pytorch_model\.safetensors' is empty"):
        open_checkpoint(pipeline)


def test_a_component_that_is_not_there_is_said(pipeline: Path) -> None:
    for file in (pipeline / "unet").iterdir():
        file.unlink()
    assert open_checkpoint(pipeline).notes == (
        "model_index.json names unet (UNet2DConditionModel), of which no weights are here.",
    )


def test_weights_at_the_top_are_one_model(pipeline: Path) -> None:
    save_file(random_state(TEXT), pipeline / "model.safetensors")
    assert {m.module.component for m in open_checkpoint(pipeline).matrices} == {None}


def test_a_role_map_needs_one_component(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several components: pick one with file="):
        open_checkpoint(pipeline, role_map=tmp_path / "map.toml")


def test_a_damaged_index_is_an_error(pipeline: Path) -> None:
    (pipeline / "model_index.json").write_text("[")
    with pytest.raises(SourceError, match=r"'model_index.json' is damaged"):
        open_checkpoint(pipeline)
