"""Entries of the wiring are found by the part of config.json that speaks of a piece, and by GGUF's architecture."""

import pytest

from specdiag.architecture.wiring import WIRINGS, UnknownWiring, Wiring, find_wiring, rotated_rows


def test_every_type_has_one_entry():
    types = [
        (kind, entry.holds)
        for entry in WIRINGS
        for kind in (*entry.model_type, *(f"gguf {name}" for name in entry.gguf))
    ]
    assert len(types) == len(set(types)) > 40
    assert all(entry.model_type or entry.gguf or entry.holds for entry in WIRINGS)


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
        ({"architectures": ["gemma4"]}, None, "wiring of architecture gemma4 is unknown without a model_type"),
        ({"architectures": [7]}, None, "unknown without a config.json"),
        ({"model_type": "opt", "do_layer_norm_before": False}, None, "wiring of model_type opt is unknown"),
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


OWN = Wiring(norm="layer", attn_in="own")


def test_own_entries():
    listed = Wiring(norm="rms", attn_in="listed", model_type=("llama",))
    assert find_wiring({"model_type": "llama"}, None, own=[OWN]).attn_in == "input_layernorm"
    assert find_wiring({"model_type": "llama"}, None, own=[OWN, listed]).attn_in == "listed"
    assert find_wiring({"model_type": "novel"}, None, own=[listed, OWN]).attn_in == "own"
    assert find_wiring({}, "vision", own=[OWN]).attn_in == "own"
    part = Wiring(norm="rms", attn_in="part", holds=("attn.wq",))
    assert find_wiring({}, None, own=[part], modules=["attn.wq", "mlp.up"]).attn_in == "part"
    with pytest.raises(UnknownWiring, match="without a config"):
        find_wiring({}, None, own=[part], modules=["attn.q"])


def test_a_condition_on_the_config():
    assert find_wiring({"model_type": "opt"}, None).mlp_in == "final_layer_norm"
    assert find_wiring({"model_type": "opt", "do_layer_norm_before": True}, None).mlp_in == "final_layer_norm"


@pytest.mark.parametrize(("rotary", "rows"), [(0.5, 8), (4, 4), (1.0, 16)])
def test_a_stated_part_is_rotated(rotary, rows):
    assert rotated_rows(Wiring(norm="rms", rope="half", rotary=rotary), [{}], 16) == rows
    with pytest.raises(UnknownWiring, match="with rotary 3 cannot"):
        rotated_rows(Wiring(norm="rms", rope="half", rotary=3), [{}], 16)
