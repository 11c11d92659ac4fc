"""Changes that leave all spectra, or all products, and no output as it was: none of them is one function."""

import numpy as np
import pytest
import torch
from related_models import config, llama, opened
from wired_blocks import layers
from wired_models import logits, random_model

import specdiag
from specdiag.checkpoint.memory import from_state_dict

RNG = np.random.default_rng(5)


def normal(*shape):
    return torch.from_numpy(RNG.standard_normal(shape))


def turn_queries_and_keys(layer):
    """Q'K at distance 0 stays."""
    turn = torch.linalg.qr(normal(layer.q.shape[1], layer.q.shape[1])).Q
    for side, name in ((layer.q, "q"), (layer.k, "k")):
        side.copy_(turn @ side)
        if name in layer.biases:
            layer.biases[name].copy_(layer.biases[name] @ turn.T)


def exchange_planes(layer):
    """Behind norms of their own: rows and gains of queries and keys alike."""
    order = torch.arange(layer.q.shape[1]).roll(1)
    for side, gain in ((layer.q, layer.q_gain), (layer.k, layer.k_gain)):
        side.copy_(side[:, order].clone())
        rows = gain.unflatten(0, (-1, len(order)))
        rows.copy_(rows[:, order].clone())


def renumber_gates(layer):
    layer.gate.copy_(layer.gate.roll(1, 1).clone())


def renumber_downs(layer):
    layer.down.copy_(layer.down.roll(1, -1).clone())


def turn_neurons(layer):
    """Down times up stays."""
    turn = torch.linalg.qr(normal(layer.up.shape[1], layer.up.shape[1])).Q
    layer.up.copy_(turn @ layer.up)
    layer.down.copy_(layer.down @ turn.T)
    layer.biases["up"].copy_(layer.biases["up"] @ turn.T)


def renumber_router(layer):
    layer.router.copy_(layer.router.roll(1, 0).clone())


def move_bias(name):
    def change(layer):
        if name in layer.biases:
            layer.biases[name].add_(normal(*layer.biases[name].shape))

    change.__name__ = f"bias of {name}"
    return change


def scale_norms(layer):
    for name, module in layer.norms.items():
        if name.endswith("LayerNorm"):
            module.weight.mul_(torch.exp(0.3 * normal(len(module.weight))))


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("llama", turn_queries_and_keys, "distances"),
        ("gptj", turn_queries_and_keys, "distances"),
        ("gemma2", turn_queries_and_keys, "distances"),
        ("gpt_neox", turn_queries_and_keys, "distances"),
        ("qwen3", exchange_planes, "distances"),
        ("llama", renumber_gates, "MLP"),
        ("mixtral", renumber_gates, "MLP"),
        ("gpt2", turn_neurons, "MLP"),
        ("mixtral", renumber_router, "router"),
        ("gpt2", move_bias("up"), "MLP"),
        ("opt", move_bias("up"), "MLP"),
        ("qwen2", move_bias("v"), "outputs"),
        ("gpt2", move_bias("o"), "outputs"),
        ("whisper", move_bias("down"), "MLP"),
        ("bert", scale_norms, "norm behind"),
        ("bart", move_bias("v"), "outputs"),
    ],
)
def test_a_change_that_spectra_do_not_see(kind, change, told):
    model, other = random_model(kind), random_model(kind)
    with torch.no_grad():
        for layer in layers(kind, other):
            if not layer.is_cross or change.__name__.startswith("bias"):
                change(layer)
    before = logits(kind, model)
    assert float((logits(kind, other) - before).abs().max() / before.abs().max()) > 1e-3
    found = specdiag.lineage(model, other, device="cpu", jobs=1).relations[0]
    assert found.attention < 1e-3
    assert found.worst < 0.02, "spectra alone call it one function"
    assert found.verdict == "derived"
    assert told in found.reason
    assert told in found.signs[0]


def test_neurons_renumbered_on_one_side_are_no_turned_stream():
    model, other = random_model("gpt2"), random_model("gpt2")
    with torch.no_grad():
        for layer in layers("gpt2", other):
            renumber_downs(layer)
    found = specdiag.lineage(model, other, device="cpu", jobs=1).relations[0]
    assert found.verdict == "derived"
    assert not any("turned" in sign for sign in found.signs)


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta"),
        ({"hidden_act": "silu"}, {"hidden_act": "gelu"}, "activation"),
        ({"rms_norm_eps": 1e-6}, {"rms_norm_eps": 1e-2}, "eps"),
    ],
)
def test_configs_that_differ_are_told(one, other, told):
    state = llama()
    found = specdiag.lineage(opened(state, **one), opened(state, **other), device="cpu").relations[0]
    assert found.verdict == "derived"
    assert told in found.signs[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}),
        ({"hidden_act": "silu"}, {"hidden_act": "swish"}),
        ({"rms_norm_eps": 1e-5}, {"rms_norm_eps": float(np.float32(1e-5))}),
        ({"rms_norm_eps": 1e-5}, {}),
    ],
)
def test_configs_that_say_the_same_otherwise_are_one(one, other):
    state = llama()
    found = specdiag.lineage(opened(state, **one), opened(state, **other), device="cpu").relations[0]
    assert found.verdict == "same function"


def test_what_was_left_out_is_no_same_function():
    """A gate of ReLU leaves the MLP out."""
    sides = [opened(llama(), hidden_act="relu") for _ in range(2)]
    found = specdiag.lineage(*sides, device="cpu").relations[0]
    assert found.verdict == "derived"
    assert "not compared whole" in found.signs[0]


def test_a_tensor_that_no_wiring_names_is_compared():
    state = llama()
    strange = {"model.layers.1.self_attn.sinks": torch.ones(3).double()}
    with_one, with_other = ({**state, **{k: v * f for k, v in strange.items()}} for f in (1.0, 3.0))
    found = specdiag.lineage(opened(with_one), opened(with_other), device="cpu").relations[0]
    assert found.verdict == "derived"
    assert "self_attn.sinks differs (layer 1)" in found.signs[0]
    assert specdiag.lineage(opened(with_one), opened(with_one), device="cpu").relations[0].verdict == "same function"


def test_renumbered_heads_of_t5_carry_their_position_biases():
    model, other = random_model("t5"), random_model("t5")
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for layer in layers("t5", other):
            if not layer.is_cross:
                for side in (layer.q, layer.k, layer.v):
                    side.copy_(side[order].clone())
                layer.o.copy_(layer.o[:, order].clone())
        for name, parameter in other.named_parameters():
            if name.endswith("relative_attention_bias.weight"):
                parameter.copy_(parameter[:, order].clone())
    assert float((logits("t5", other) - logits("t5", model)).abs().max()) < 1e-9
    assert specdiag.lineage(model, other, device="cpu").relations[0].verdict == "same function"


def test_a_bias_of_the_mlp_of_a_llama_is_compared():
    state = llama()
    names = [f"model.layers.{i}.mlp.{part}_proj.bias" for i in range(5) for part in ("gate", "up")]
    biased = [state | {name: torch.full((80,), size).double() for name in names} for size in (1.0, 1.0)]
    biased[1] = {n: v * 2 if n.endswith("up_proj.bias") else v for n, v in biased[1].items()}
    found = specdiag.lineage(*(from_state_dict(b, config=config()) for b in biased), device="cpu")
    assert found.relations[0].verdict == "derived"


def test_a_turned_stream_does_not_hide_a_change():
    from lineage_forms import turned

    state = llama()
    other = turned(state)
    assert specdiag.lineage(opened(state), opened(other), device="cpu").relations[0].verdict == "same function"
    mix = torch.linalg.qr(normal(12, 12)).Q
    for i in range(5):
        for name in ("q", "k"):
            key = f"model.layers.{i}.self_attn.{name}_proj.weight"
            other[key] = (mix @ other[key].unflatten(0, (-1, 12))).flatten(0, 1)
    found = specdiag.lineage(opened(state), opened(other), device="cpu").relations[0]
    assert found.worst < 1e-6
    assert (found.verdict, "distances" in found.signs[0]) == ("derived", True)


def test_spectra_without_their_vectors_are_no_same_function():
    """Every product turned by another rotation on either side."""
    state = llama()
    other = dict(state)
    for name, value in state.items():
        if ".layers." in name and value.ndim == 2:
            left, right = (torch.linalg.qr(normal(48, 48)).Q for _ in range(2))
            is_writer = "o_proj" in name or "down" in name
            other[name] = left @ value if is_writer else value @ right
    for i in range(5):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            other[f"model.layers.{i}.{norm}.weight"] = torch.ones(48).double()
    plain = {n: torch.ones(48).double() if "layernorm" in n else v for n, v in state.items()}
    found = specdiag.lineage(opened(plain), opened(other), device="cpu").relations[0]
    assert found.verdict != "same function"
    without = [{n: v for n, v in side.items() if "embed" not in n} for side in (plain, other)]
    assert specdiag.lineage(*map(opened, without), device="cpu").relations[0].verdict != "same function"


def test_a_turned_stream_without_embeddings_is_not_decided():
    from lineage_forms import turned

    state = llama()
    sides = [{n: v for n, v in side.items() if "embed" not in n and "head" not in n} for side in (state, turned(state))]
    found = specdiag.lineage(*map(opened, sides), device="cpu").relations[0]
    assert found.verdict == "derived"
    assert "no embeddings of both models" in found.signs[0]


def test_norms_behind_the_sum_are_not_passed_over():
    model = random_model("bert")
    config_of = model.config.to_dict()
    state = {name: value.detach() for name, value in model.state_dict().items()}
    renamed = {name.replace("output.LayerNorm", "output.other_norm"): value for name, value in state.items()}
    whole = from_state_dict(state, config=config_of)
    found = specdiag.lineage(whole, from_state_dict(renamed, config=config_of), device="cpu").relations[0]
    assert found.verdict == "derived"
    assert "in one model alone" in found.signs[0]
