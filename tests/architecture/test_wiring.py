"""Entries of the wiring are found by the part of config.json that speaks of a piece, and by GGUF's architecture."""

import pytest

from specdiag.architecture.wiring import WIRINGS, UnknownWiring, find_wiring, rotated_rows


def test_every_type_has_one_entry():
    types = [kind for entry in WIRINGS for kind in (*entry.model_type, *(f"gguf {name}" for name in entry.gguf))]
    assert len(types) == len(set(types)) == 19
    assert all((entry.q_norm is None) == (entry.k_norm is None) for entry in WIRINGS)
    assert all(entry.rope is not None for entry in WIRINGS if entry.rotary is not None)


@pytest.mark.parametrize(
    ("config", "component", "attn_in"),
    [
        ({"model_type": "gpt2"}, None, "ln_1"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "text", "input_layernorm"),
        ({"model_type": "whisper"}, "decoder", "self_attn_layer_norm"),
        ({"architectures": ["llama"]}, None, "attn_norm"),
    ],
)
def test_an_entry_is_found(config, component, attn_in):
    assert find_wiring(config, component).attn_in == attn_in


@pytest.mark.parametrize(
    ("config", "component", "said"),
    [
        ({}, None, "the wiring is unknown without a config.json that names a model_type"),
        ({"model_type": "albert"}, None, "wiring of model_type albert is unknown"),
        ({"model_type": "llama"}, "vision", "wiring of the vision part of model_type llama is unknown"),
        ({"model_type": "llava", "vision_config": {"model_type": "siglip"}}, "vision", "model_type siglip is unknown"),
        ({"architectures": ["gemma2"]}, None, "wiring of architecture gemma2 is unknown without a model_type"),
        ({"architectures": [7]}, None, "unknown without a config.json"),
    ],
)
def test_no_entry_is_guessed(config, component, said):
    with pytest.raises(UnknownWiring, match=said):
        find_wiring(config, component)


@pytest.mark.parametrize(
    ("kind", "config", "rows"),
    [
        ("gpt2", {}, 0),
        ("llama", {"partial_rotary_factor": 0.5}, 16),
        ("gpt_neox", {"rotary_pct": 0.25}, 4),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.5}}, 8),
        ("gptj", {"rotary_dim": 4}, 4),
        ("gptj", {"rotary_dim": None}, 16),
    ],
)
def test_rotated_rows_of_a_head_of_16(kind, config, rows):
    assert rotated_rows(find_wiring({"model_type": kind}, None), [config], 16) == rows


@pytest.mark.parametrize("value", [0, -1, 3, 17, 0.2, float("inf"), float("nan")])
def test_rows_that_make_no_planes_are_refused(value):
    with pytest.raises(UnknownWiring, match="cannot be cut into rotary planes"):
        rotated_rows(find_wiring({"model_type": "gptj"}, None), [{"rotary_dim": value}], 16)
    with pytest.raises(UnknownWiring, match="heads of 1 rows cannot"):
        rotated_rows(find_wiring({"model_type": "llama"}, None), [{}], 1)
