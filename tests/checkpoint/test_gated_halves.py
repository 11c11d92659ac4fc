"""Which half of a gated MLP is the gate, in saves of GPT-NeoX, Megatron-DeepSpeed and Megatron, cut in slices or not."""

from __future__ import annotations

from pathlib import Path

import layout_writers
import numpy as np
import pytest
import torch
from test_megatron import ARGS, AXES, megatron_state

from specdiag.checkpoint.reader import open_checkpoint

WIDTH, HIDDEN = 32, 48
torch.manual_seed(0)
HALVES = torch.randn(2, HIDDEN, WIDTH)


def pipeline(folder: Path, attention: str, ranks: int, name: str = "dense_h_to_4h") -> Path:
    """Write two layers, each part of which holds both halves of its slice, as the programs cut them."""
    for number in (2, 3):
        for rank in range(ranks):
            tensors = {
                f"{attention}.query_key_value.weight": torch.randn(3 * WIDTH, WIDTH).chunk(ranks)[rank],
                f"{attention}.dense.weight": torch.randn(WIDTH, WIDTH).chunk(ranks, 1)[rank],
                f"mlp.{name}.weight": torch.cat([half.chunk(ranks)[rank] for half in HALVES]),
                "mlp.dense_4h_to_h.weight": torch.randn(WIDTH, HIDDEN).chunk(ranks, 1)[rank],
                "input_layernorm.weight": torch.ones(WIDTH),
            }
            state = {key: tensor.clone() for key, tensor in tensors.items()}
            torch.save(state, folder / f"layer_{number:02d}-model_{rank:02d}-model_states.pt")
    return folder


@pytest.mark.parametrize("ranks", [1, 2])
def test_gpt_neox_activates_the_second_half(tmp_path: Path, ranks: int) -> None:
    """`x, gate = x.chunk(2, dim=-1)` in megatron/model/activations.py."""
    parts = {
        m.module.role: m
        for m in open_checkpoint(pipeline(tmp_path, "attention", ranks)).matrices
        if ".2.mlp.dense_h_to" in m.name
    }
    np.testing.assert_array_equal(parts["up"].load(), HALVES[0])
    np.testing.assert_array_equal(parts["gate"].load(), HALVES[1])


@pytest.mark.parametrize("ranks", [1, 2])
def test_megatron_deepspeed_does_not_tell_them_apart(tmp_path: Path, ranks: int) -> None:
    checkpoint = open_checkpoint(pipeline(tmp_path, "self_attention", ranks))
    (first,) = (m for m in checkpoint.matrices if m.name == "layers.2.mlp.dense_h_to_4h.weight")
    assert first.module.role == "up"
    np.testing.assert_array_equal(first.load(), HALVES.reshape(-1, WIDTH))
    assert any("dense_h_to_4h" in note and "could not be split" in note for note in checkpoint.notes)


@pytest.mark.parametrize("ranks", [1, 2])
def test_megatron_activates_the_first_half(tmp_path: Path, ranks: int) -> None:
    state = megatron_state()
    layout_writers.megatron(tmp_path, state, AXES, tensor=ranks, gated=True, args=ARGS, layers=4)
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    parts = {m.module.role: m for m in open_checkpoint(tmp_path).matrices if m.name == name}
    gate, up = state[name].chunk(2)
    np.testing.assert_array_equal(parts["gate"].load(), gate)
    np.testing.assert_array_equal(parts["up"].load(), up)


def test_an_mlp_that_is_not_gated_is_up(tmp_path: Path) -> None:
    for number in (2, 3):
        state = {"attention.dense.weight": torch.randn(WIDTH, WIDTH), "mlp.dense_h_to_4h.weight": HALVES[0].clone(),
                 "mlp.dense_4h_to_h.weight": torch.randn(WIDTH, HIDDEN)}  # fmt: skip
        torch.save(state, tmp_path / f"layer_{number:02d}-model_00-model_states.pt")
    roles = {m.name: m.module.role for m in open_checkpoint(tmp_path).matrices}
    assert roles["layers.2.mlp.dense_h_to_4h.weight"] == "up"
