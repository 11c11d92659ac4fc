"""Blocks of which something is odd: values that are no numbers, activations and positions with further freedoms."""

import numpy as np
import pytest
import torch
from related_models import llama, opened
from wired_models import random_model

import specdiag
from specdiag.analysis.source import open_source
from specdiag.function.alarms import look_for_alarms
from specdiag.function.attention import Moving
from specdiag.function.balance import balance_moving
from specdiag.function.blocks import find_blocks

AT = "model.layers.1."


def notes_of(state, **config):
    return " ".join(find_blocks(opened(state, **config))[1])


@pytest.mark.parametrize("activation", ["linear", "identity"])
def test_neurons_of_a_linear_mlp_can_be_mixed(activation):
    notes = notes_of(llama(), hidden_act=activation)
    assert "The MLP of model.layers.0 and 4 more blocks is left out" in notes
    assert f"activation {activation}" in notes
    (note,) = find_blocks(open_source(random_model("gpt2", activation_function="linear")))[1]
    assert "can be mixed" in note


def test_embeddings_of_distances_multiply_queries_and_keys():
    blocks, notes = find_blocks(open_source(random_model("bert", position_embedding_type="relative_key")))
    assert all(block.attention is None and block.mlps for block in blocks)
    assert "relative_key" in notes[0]


def test_attention_under_unknown_names_is_told():
    renamed = {
        name.replace("self_attn.", "blub.").replace("q_proj", "aa").replace("k_proj", "bb"): value
        for name, value in llama().items()
    }
    assert "Attention of model.layers.0 and 4 more blocks is left out" in notes_of(renamed)


def test_a_part_that_is_not_there_is_not_left_out():
    notes = notes_of(llama() | {f"{AT}extra_norm.weight": torch.ones(48).double()})
    assert "it has a norm extra_norm" in notes
    assert "router" not in notes
    assert "Cross-attention" not in notes


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("input_layernorm.weight", lambda w: w * float("nan"), "not finite"),
        ("post_attention_layernorm.weight", lambda w: w * float("inf"), "not finite"),
        ("self_attn.q_proj.weight", lambda w: w * 1e200, "too large or too small"),
    ],
)
def test_alarms_leave_out_what_is_no_number(name, change, reason):
    state = llama()
    alarms, _ = look_for_alarms(opened(state | {f"{AT}{name}": change(state[f"{AT}{name}"])}))
    assert any(reason in note and "model.layers.1" in note for note in alarms.notes)
    assert all(np.isfinite(row.bound) for row in (*alarms.ranges, *alarms.scores))


def test_heads_with_more_rows_than_the_stream_has_channels():
    model = random_model("llama", head_dim=64)
    alarms, _ = look_for_alarms(open_source(model))
    assert len(alarms.scores) == 8
    assert specdiag.lineage(model, model, device="cpu").relations[0].verdict == "same function"
    rng = np.random.default_rng(0)
    heads = Moving(v=rng.standard_normal((1, 5, 3)), o=rng.standard_normal((2, 3, 5)))
    even = balance_moving(heads)
    assert even.v.shape == heads.v.shape
    assert even.o @ even.v == pytest.approx(heads.o @ heads.v)
