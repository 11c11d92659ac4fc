"""Adapters of other methods are refused by name, and no tensor disappears beside those that are understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import LORA, QUERY, Arrays, lora, random, write

import specdiag
from specdiag.checkpoint.adapters.names import take_apart
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError


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
    """Tensors that are no update are listed with the reason."""
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
        "base_model.model.pruned.lora_A.weight": "factors of rank 0: nothing of this update is there",
        "base_model.model.pruned.lora_B.weight": "factors of rank 0: nothing of this update is there",
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
