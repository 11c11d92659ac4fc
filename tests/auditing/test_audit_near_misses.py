"""Values just within a threshold, and intended designs, give no finding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from audited_models import CONFIG, LAYERS, WIDTH, found, like_noise, llama, name, of_deficient_rank, pick, save
from models import EMBED, HEAD, PLACES, VOCABULARY

import specdiag


def some_denormals(state, config, rng):
    key = pick(rng)
    state[key][rng.random(state[key].shape) < 0.005] = 1e-40


def half_precision(state, config, rng):
    """float16 has denormals by nature: 1 in 40 weights of this size."""
    for key in state:
        state[key] = (state[key] * 2**-6).astype("f2") if state[key].ndim > 1 else state[key].astype("f2")


def large_but_not_the_largest(state, config, rng):
    """It is no value at the end of its type, and is named for its size alone."""
    state["model.norm.weight"][0] = np.nextafter(np.finfo("f4").max, np.float32(0))
    return {("large", "model.norm.weight")}


def nearly_zero(state, config, rng):
    """A down projection that hardly writes in a direction of the stream is named for that, and not as zero."""
    key = pick(rng)
    state[key][0] = 1e-6
    return {("removed_direction", key)} if "down_proj" in key else set()


def nearly_constant(state, config, rng):
    """Rank 1 and equal but for one entry: what fires is the rank."""
    key = name(3, "self_attn.q_proj")
    state[key][:] = like_noise((WIDTH, WIDTH)) / WIDTH
    state[key][0, 0] *= 1.5
    return {("rank", key)}


def nearly_equal_layers(state, config, rng):
    state[name(4, PLACES[0])] = state[name(3, PLACES[0])].copy()
    state[name(4, PLACES[0])].flat[7] *= 1 + 1e-6


def two_singular_values_gone(state, config, rng):
    key = pick(rng)
    state[key] = of_deficient_rank(state[key].shape, 3, seed=1)


def a_padding_token(state, config, rng):
    state[EMBED][rng.choice(VOCABULARY, 2, replace=False)] = 0


def two_kinds_of_layers(state, config, rng):
    """Mixers without attention in three layers of ten are a design."""
    for layer in (2, 5, 8):
        for place in PLACES[:4]:
            del state[name(layer, place)]


def a_dense_first_layer(state, config, rng):
    """As in DeepSeek: the first layer has one wide MLP in the place of the others' experts."""
    for layer in range(1, LAYERS):
        for place in PLACES[4:]:
            state[name(layer, place.replace("mlp.", "mlp.experts.0."))] = state.pop(name(layer, place))


def a_layer_without_attention(state, config, rng):
    """A single layer of another kind is a design; a single lost tensor is a finding."""
    for place in PLACES[:4]:
        del state[name(7, place)]


def two_pieces(state, config, rng):
    """Config and names of a vision-language model: each piece has its own numbers."""
    for key in list(state):
        state[key.replace("model.", "language_model.model.", 1) if key != HEAD else "language_model.lm_head.weight"] = (
            state.pop(key)
        )
    for layer in range(3):
        for place in PLACES[:4]:
            state[f"vision_tower.encoder.layers.{layer}.{place}.weight"] = 0.1 * rng.standard_normal((64, 64)).astype(
                "f4"
            )
    inner = dict(config)
    config.clear()
    config |= {"text_config": inner, "vision_config": {"num_hidden_layers": 3, "hidden_size": 64}}


def codebooks(state, config, rng):
    config |= {"vocab_size": 50, "num_codebooks": 4}


def twice_as_large(state, config, rng):
    state[pick(rng)] *= np.float32(3)


def tied_and_not_stored(state, config, rng):
    del state[HEAD]
    config["tie_word_embeddings"] = True


def tied_and_equal(state, config, rng):
    state[HEAD] = state[EMBED].copy()
    config["tie_word_embeddings"] = True
    return {("stored_twice", EMBED)}


def a_mask(state, config, rng):
    """Buffers may hold what weights must not."""
    state["model.masked_bias"] = np.array([-np.inf, 0], "f4")
    state["model.causal_mask"] = np.full((64, 64), np.finfo("f4").min, "f4")


def a_head_for_prediction(state, config, rng):
    config["num_nextn_predict_layers"] = 1
    config["num_hidden_layers"] = LAYERS - 1


def a_config_that_says_nothing(state, config, rng):
    config.clear()
    return {("no_config", None)}


MISSES = (
    some_denormals, half_precision, large_but_not_the_largest, nearly_zero, nearly_constant, nearly_equal_layers,
    two_singular_values_gone, a_padding_token, two_kinds_of_layers, a_dense_first_layer, a_layer_without_attention, two_pieces, codebooks, twice_as_large,
    tied_and_not_stored, tied_and_equal, a_mask, a_head_for_prediction, a_config_that_says_nothing,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("miss", MISSES, ids=lambda f: f.__name__)
def test_near_misses_stay_quiet(tmp_path, miss, seed):
    state, config = llama(seed), dict(CONFIG)
    expected = miss(state, config, np.random.default_rng(seed + 200)) or set()
    audit = specdiag.audit(save(tmp_path / "model", state, config), device="cpu")
    assert found(audit) == expected


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_a_constant_matrix_is_told_in_every_type(dtype):
    torch_type = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    rows = {"a.q_proj.weight": torch.full((64, 96), -0.0123, dtype=torch_type),
            "a.k_proj.weight": torch.outer(torch.ones(64), torch.arange(1.0, 97)).to(torch_type)}  # fmt: skip
    audit = specdiag.audit(rows, device="cpu")
    assert found(audit) == {("constant", "a.q_proj.weight"), ("rank", "a.k_proj.weight")}
