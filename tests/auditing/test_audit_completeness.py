"""Rules on completeness from names and shapes alone: planted faults are found, designs stay quiet."""

from __future__ import annotations

import re

import numpy as np
import pytest
from audited_models import CONFIG, EXPERTS, HIDDEN, LAYERS, WIDTH, found, llama, mixture, name, save
from models import EMBED, HEAD, VOCABULARY

import specdiag

SIZES = {"intermediate_size": HIDDEN, "num_key_value_heads": 4, "head_dim": WIDTH // 4}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype("f4")


def no_embedding(state, config):
    del state[EMBED]
    return {("missing_tensor", None)}


def one_norm(state, config):
    key = "model.layers.4.input_layernorm.weight"
    del state[key]
    return {("missing_tensor", key)}


def no_final_norm(state, config):
    del state["model.norm.weight"]
    return {("missing_tensor", None)}


def up_nowhere(state, config):
    for layer in range(LAYERS):
        del state[name(layer, "mlp.up_proj")]
    return {("missing_tensor", "model.layers.*")}


def queries_nowhere(state, config):
    for layer in range(LAYERS):
        del state[name(layer, "self_attn.q_proj")]
    return {("missing_tensor", "model.layers.*")}


def tied_and_no_embedding(state, config):
    """Nothing of the vocabulary is there at all."""
    config["tie_word_embeddings"] = True
    del state[EMBED], state[HEAD]
    return {("missing_tensor", None)}


def transposed(state, config):
    key = name(4, "mlp.down_proj")
    state[key] = np.ascontiguousarray(state[key].T)
    return {("other_shape", key)}


def wider(state, config):
    key = name(7, "mlp.up_proj")
    state[key] = noise(HIDDEN + 8, WIDTH)
    return {("other_shape", key)}


def other_query(state, config):
    key = name(2, "self_attn.q_proj")
    state[key] = noise(WIDTH - 16, WIDTH)
    return {("other_shape", key)}


def other_intermediate_size(state, config):
    config["intermediate_size"] = 2 * HIDDEN
    return {("intermediate_size", name(i, f"mlp.{part}_proj")) for i in range(LAYERS) for part in ("gate", "up")}


def other_kv_heads(state, config):
    config["num_key_value_heads"] = 2
    return {("kv_heads", name(i, f"self_attn.{part}_proj")) for i in range(LAYERS) for part in "kv"}


def other_head_dim(state, config):
    config["head_dim"] = 2 * WIDTH // 4
    return {("kv_heads", name(i, f"self_attn.{part}_proj")) for i in range(LAYERS) for part in "kv"}


FAULTS = (
    no_embedding, one_norm, no_final_norm, up_nowhere, queries_nowhere, transposed, wider, other_query,
    other_intermediate_size, other_kv_heads, other_head_dim, tied_and_no_embedding,
)  # fmt: skip


def test_a_final_norm_may_be_numbered_like_a_layer(tmp_path):
    """As the files of a pipeline number it: behind the layers, before the head."""
    state = llama()
    norm = state.pop("model.norm.weight")
    assert found(specdiag.audit(save(tmp_path / "model", state, CONFIG), device="cpu")) == {("missing_tensor", None)}
    state[f"model.layers.{LAYERS}.norm.weight"] = norm
    assert not found(specdiag.audit(specdiag.analyze(save(tmp_path / "numbered", state, {}), device="cpu")))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_found_and_nothing_else(tmp_path, fault):
    state, config = llama(), CONFIG | SIZES
    expected = fault(state, config)
    audit = specdiag.audit(save(tmp_path / "model", state, config), device="cpu")
    assert found(audit) == expected
    if all(check not in ("intermediate_size", "kv_heads") for check, _ in expected) and HEAD in state:
        assert found(specdiag.audit(specdiag.analyze(tmp_path / "model", device="cpu"))) == expected


@pytest.mark.parametrize(
    ("layers", "stored", "stated", "expected"),
    [
        (2, EXPERTS, EXPERTS, set()),
        (2, EXPERTS - 1, None, {("experts", f"model.layers.{i}") for i in range(2)}),
        (2, EXPERTS - 1, EXPERTS, {(c, f"model.layers.{i}") for i in range(2) for c in ("experts", "n_experts")}),
        (
            LAYERS,
            EXPERTS - 1,
            EXPERTS,
            {(c, f"model.layers.{i}") for i in range(LAYERS) for c in ("experts", "n_experts")},
        ),
        (2, EXPERTS, EXPERTS + 4, {("n_experts", f"model.layers.{i}") for i in range(2)}),
    ],
)
def test_experts_are_counted_against_the_router_and_the_configuration(tmp_path, layers, stored, stated, expected):
    config = CONFIG | {"num_hidden_layers": layers} | ({} if stated is None else {"num_experts": stated})
    audit = specdiag.audit(save(tmp_path / "model", mixture(layers, stored), config), device="cpu")
    assert found(audit) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_experts_per_tok": EXPERTS}, None),
        ({"num_experts_per_tok": EXPERTS + 1}, "num_experts_per_tok of config.json is 5, and the router has 4"),
        ({"moe_topk": EXPERTS + 1}, "moe_topk of config.json is 5, and the router has 4"),
        ({"n_group": 2, "topk_group": 2}, None),
        ({"n_group": 2, "topk_group": 3}, "topk_group of config.json is 3, and n_group is 2"),
        ({"n_group": 2, "topk_group": 3, "topk_method": "greedy"}, None),
    ],
)
def test_no_more_experts_are_chosen_than_there_are(tmp_path, change, said):
    config = CONFIG | {"num_hidden_layers": 2, "num_experts": EXPERTS} | change
    audit = specdiag.audit(save(tmp_path / "model", mixture(), config), device="cpu")
    assert [f.value for f in audit.findings if f.check == "experts"] == ([] if said is None else [said])
    dense = specdiag.audit(save(tmp_path / "dense", llama(layers=2), config), device="cpu")
    assert not any(f.check == "experts" for f in dense.findings)


def pruned_layer(state, config):
    """As structured pruning leaves it: one layer is narrower in all three matrices."""
    for seed, (place, shape) in enumerate({"gate": (96, WIDTH), "up": (96, WIDTH), "down": (WIDTH, 96)}.items()):
        state[name(3, f"mlp.{place}_proj")] = noise(*shape, seed=seed)


def fewer_heads(state, config):
    for seed, part in enumerate("qkvo"):
        state[name(3, f"self_attn.{part}_proj")] = noise(*((WIDTH, 48) if part == "o" else (48, WIDTH)), seed=seed)


def no_norms_at_all(state, config):
    """OLMo's norms have no gains."""
    for key in [key for key in state if "norm" in key]:
        del state[key]


def norms_in_half_of_the_layers(state, config):
    for layer in range(0, LAYERS, 2):
        del state[f"model.layers.{layer}.input_layernorm.weight"]


def another_name_of_the_embedding(state, config):
    state["model.word_table.weight"] = state.pop(EMBED)
    return {("unrecognised", "model.word_table.weight")}


DESIGNS = (pruned_layer, fewer_heads, no_norms_at_all, norms_in_half_of_the_layers, another_name_of_the_embedding)


@pytest.mark.parametrize("design", DESIGNS, ids=lambda f: f.__name__)
def test_designs_stay_quiet(tmp_path, design):
    state, config = llama(), dict(CONFIG)
    expected = design(state, config) or set()
    assert found(specdiag.audit(save(tmp_path / "model", state, config), device="cpu")) == expected


PIPELINES = {
    "gpt-neox": {"model.norm.weight": f"layers.{LAYERS + 3}.norm.weight"},
    "bigscience": {"model.norm.weight": f"layers.{LAYERS + 3}.weight"},
}
"""Names of the last norm in a pipeline: the number of its file, with or without a word behind it."""
PIPELINE = {"pipeline_parallel_size": 2}


@pytest.mark.parametrize("names", PIPELINES.values(), ids=PIPELINES)
def test_the_last_norm_of_a_pipeline_has_a_number_as_its_layers_have(tmp_path, names):
    names |= {EMBED: "layers.0.word_embeddings.weight", HEAD: f"layers.{LAYERS + 4}.embed_out.weight"}
    state = {
        names.get(key) or re.sub(r"model\.layers\.(\d+)", lambda m: f"layers.{int(m[1]) + 2}", key): value
        for key, value in llama().items()
    }
    assert found(specdiag.audit(save(tmp_path / "whole", state, PIPELINE), device="cpu")) == set()
    del state[names["model.norm.weight"]]
    assert found(specdiag.audit(save(tmp_path / "cut", state, PIPELINE), device="cpu")) == {("missing_tensor", None)}


def test_a_head_without_tie_word_embeddings_follows_the_architecture(tmp_path):
    """LlamaForCausalLM has a head of its own by default, GPT2LMHeadModel shares the embedding."""
    state, config = llama(), {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}
    del state[HEAD]
    audit = specdiag.audit(save(tmp_path / "llama", state, config), device="cpu")
    assert found(audit) == {("head", None)}
    assert audit.findings[0].value == "tie_word_embeddings is false by default"
    shared = config | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    assert not specdiag.audit(save(tmp_path / "gpt2", state, shared), device="cpu").findings
    unknown = config | {"model_type": "of tomorrow"}
    audit = specdiag.audit(save(tmp_path / "unknown", state, unknown), device="cpu")
    assert not audit.findings
    assert "its model_type has no known default" in audit.coverage.not_checked["head"]
    assert config["vocab_size"] == VOCABULARY


def test_the_table_of_defaults_is_that_of_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from specdiag.auditing.heads import _defaults

    ties = _defaults()
    assert not ties.tied & ties.untied
    kinds = [*sorted(ties.tied | ties.untied)[::7], "llama", "gpt2", "mistral", "qwen2", "gemma2"]
    assert [kind for kind in kinds if CONFIG_MAPPING[kind].tie_word_embeddings is not (kind in ties.tied)] == []
