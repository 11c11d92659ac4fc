"""Adapters alone: the scale, rank and type of each method, against products formed in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import LORA, QUERY, assert_spectrum, dense, lora, random, row, write
from models import write_checkpoint
from read_back import values

import specdiag
from specdiag.checkpoint.reader import open_checkpoint


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
        "The rows are an adapter's updates s B A, not weights; made for org/base: give base=org/base for W + s B A.",
    )
    write(tmp_path, tensors, LORA | {"revision": "v2"})
    assert "base=org/base@v2 " in open_checkpoint(tmp_path).notes[0]


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
    base = write_checkpoint(tmp_path / "base", {f"{QUERY}.weight": (w := random(96, 64, seed=7))})
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
    assert (record.alpha_null, record.square_alpha, record.mp_edge) == (None, None, None)
    assert record.square_status == "update"
    product = dense(tensors, QUERY, 1.0)
    assert record.frobenius_norm == pytest.approx(np.linalg.norm(product), rel=1e-9)


def test_long_factors_are_widened_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdiag.checkpoint.adapters import update as adapter_update

    monkeypatch.setattr(adapter_update, "_BLOCK", 100)
    tensors = lora(QUERY, 96, 64)
    checkpoint = open_checkpoint(write(tmp_path, tensors))
    assert_spectrum(checkpoint, f"{QUERY}.weight", dense(tensors, QUERY, 1.0))
    base = write_checkpoint(tmp_path / "base", {f"{QUERY}.weight": (w := random(96, 64, seed=7))})
    merged = values(open_checkpoint(tmp_path, base=base), f"{QUERY}.weight")
    np.testing.assert_allclose(merged, w + dense(tensors, QUERY, 1.0), rtol=1e-6, atol=1e-6)
