"""Differences among two layers, and among experts, are found without transformers."""

from __future__ import annotations

import numpy as np
import pytest
from audited_models import CONFIG, HIDDEN, WIDTH, found, llama, mixture, name, save

import specdiag

CONFIG_2 = CONFIG | {"num_hidden_layers": 2}
EXPERT = name(1, "mlp.experts.3.up_proj")


def expert_without_a_matrix(state):
    del state[EXPERT]
    return {("missing_matrix", EXPERT)}


def expert_transposed(state):
    state[EXPERT] = np.ascontiguousarray(state[EXPERT].T)
    return {("other_shape", EXPERT)}


def query(state):
    del state[name(0, "self_attn.q_proj")]
    return {("missing_matrix", name(0, "self_attn.q_proj"))}


def value(state):
    """Some layers use their keys as values, or those of another layer."""
    del state[name(1, "self_attn.v_proj")]
    return {("layers_differ", name(1, "self_attn.v_proj"))}


def router(state):
    del state[name(1, "mlp.gate")]
    return {("layers_differ", name(1, "mlp.gate"))}


def norm(state):
    del state["model.layers.1.input_layernorm.weight"]
    return {("layers_differ", "model.layers.1.input_layernorm.weight")}


def narrow_output(state):
    key = name(1, "self_attn.o_proj")
    state[key] = state[key][:, : WIDTH // 2].copy()
    return {("layers_differ", key)}


def tenfold(state):
    state[name(1, "self_attn.k_proj")] *= 10
    return {("norms_differ", name(1, "self_attn.k_proj"))}


FAULTS = (expert_without_a_matrix, expert_transposed, query, value, router, norm, narrow_output, tenfold)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_what_differs_between_two_layers_is_told(tmp_path, fault):
    state = mixture()
    expected = fault(state)
    audit = specdiag.audit(save(tmp_path, state, CONFIG_2), device="cpu", reference_model=False)
    assert found(audit) == expected
    assert {f.severity for f in audit.findings} == {"warn" if "differ" in next(iter(expected))[0] else "fail"}


def test_complete_models_of_two_layers_are_silent(tmp_path):
    for number, state in enumerate((mixture(), llama(layers=2))):
        folder = save(tmp_path / str(number), state, CONFIG_2)
        assert not found(specdiag.audit(folder, device="cpu", reference_model=False))


def test_an_mlp_without_one_of_three_matrices_is_not_a_design_where_the_other_layer_has_it(tmp_path):
    state = llama(layers=2)
    del state[name(0, "mlp.up_proj")]
    audit = specdiag.audit(save(tmp_path, state, CONFIG_2), device="cpu", reference_model=False)
    assert ("missing_matrix", name(0, "mlp.up_proj")) in found(audit)


def test_layers_of_two_designs_are_no_finding(tmp_path):
    """A first layer with a dense MLP, and one with experts after it; a wider MLP in the last layer."""
    state = mixture()
    dense = llama(layers=1)
    state = {n: t for n, t in state.items() if not n.startswith("model.layers.0.mlp")}
    state |= {n: t for n, t in dense.items() if n.startswith("model.layers.0.mlp")}
    assert not found(specdiag.audit(save(tmp_path / "dense", state, CONFIG_2), device="cpu", reference_model=False))
    state, rng = llama(layers=2), np.random.default_rng(1)
    for place, shape in (("gate", (2 * HIDDEN, WIDTH)), ("up", (2 * HIDDEN, WIDTH)), ("down", (WIDTH, 2 * HIDDEN))):
        state[name(1, f"mlp.{place}_proj")] = 0.1 * rng.standard_normal(shape).astype("f4")
    assert not found(specdiag.audit(save(tmp_path / "wide", state, CONFIG_2), device="cpu", reference_model=False))


def test_a_router_that_one_of_many_layers_lacks_is_missing(tmp_path):
    state = mixture(layers=10)
    del state[name(4, "mlp.gate")]
    audit = specdiag.audit(save(tmp_path, state), device="cpu", reference_model=False)
    assert ("missing_matrix", name(4, "mlp.gate")) in found(audit)


@pytest.mark.usefixtures("with_transformers")
def test_transformers_own_model_decides_where_it_is_compared(tmp_path):
    config = CONFIG_2 | {"intermediate_size": HIDDEN, "num_key_value_heads": 4, "rope_scaling": None}
    audit = specdiag.audit(save(tmp_path, llama(layers=2), config), device="cpu")
    assert audit.coverage.not_checked["layers_differ"] == "transformers' own model decides"


def test_experts_that_pass_their_input_on_may_lack_matrices(tmp_path):
    """LongCat-Flash counts such experts after the others, and transformers saves two matrices of each."""
    state = mixture()
    for layer in range(2):
        del state[name(layer, "mlp.experts.3.down_proj")]
    config = CONFIG_2 | {"n_routed_experts": 3}
    said = found(specdiag.audit(save(tmp_path / "alike", state, config), device="cpu", reference_model=False))
    assert ("missing_matrix", name(0, "mlp.experts.3.down_proj")) in said
    config |= {"zero_expert_num": 1}
    assert not found(specdiag.audit(save(tmp_path / "zero", state, config), device="cpu", reference_model=False))
    del state[name(0, "mlp.experts.1.down_proj")]
    said = found(specdiag.audit(save(tmp_path / "whole", state, config), device="cpu", reference_model=False))
    assert said == {("missing_matrix", name(0, "mlp.experts.1.down_proj"))}


def test_stages_of_convolutions_are_unlike(tmp_path):
    state, rng = llama(layers=2), np.random.default_rng(3)
    state["model.layers.1.upsample.conv.weight"] = 0.1 * rng.standard_normal((WIDTH, WIDTH, 3, 3)).astype("f4")
    said = found(specdiag.audit(save(tmp_path, state, CONFIG_2), device="cpu", reference_model=False))
    assert "layers_differ" not in {check for check, _ in said}
