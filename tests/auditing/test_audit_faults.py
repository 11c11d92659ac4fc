"""Every fault planted at random places is found, and nothing else fires."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audited_models import CONFIG, LAYERS, WIDTH, found, like_noise, llama, name, of_deficient_rank, pick, save
from helpers import with_singular_values
from models import EMBED, HEAD, PLACES, VOCABULARY

import specdiag
from specdiag.auditing.thresholds import default_checks

OUTLIER_FACTOR = 10.0


# Each fault takes the state, the config and a generator, changes the first two, and says what is to be found.


def nonfinite(state, config, rng):
    key = pick(rng)
    state[key].flat[rng.integers(state[key].size)] = rng.choice([np.nan, np.inf, -np.inf])
    return {("nonfinite", key)}


def nonfinite_gain(state, config, rng):
    key = pick(rng, ("input_layernorm",))
    state[key][rng.integers(WIDTH)] = np.nan
    return {("nonfinite", key)}


def saturated(state, config, rng):
    state[EMBED].flat[rng.integers(state[EMBED].size)] = -np.finfo("f4").max
    return {("saturated", EMBED), ("rank", EMBED)}  # beside such a value the others vanish


def saturated_gain(state, config, rng):
    state["model.norm.weight"][rng.integers(WIDTH)] = np.finfo("f4").max
    return {("saturated", "model.norm.weight")}


def negative_variance(state, config, rng):
    values = rng.random(WIDTH).astype("f4")
    values[rng.integers(WIDTH)] = -0.1
    state["model.batch_norm.running_var"] = values
    return {("negative_variance", "model.batch_norm.running_var")}


def denormal(state, config, rng):
    key = pick(rng)
    state[key][rng.random(state[key].shape) < 0.03] = 1e-40
    return {("denormal", key)}


def zero(state, config, rng):
    key = pick(rng)
    state[key][:] = 0
    return {("zero", key)}


def empty(state, config, rng):
    key = pick(rng)
    state[key] = np.empty(0, "f4")
    return {("empty", key)}


def unread(state, config, rng):
    key = pick(rng)
    state[key] = (state[key] * 100).astype("i1")
    return {("unread", key), ("quantised", None)}


def unrecognised(state, config, rng):
    state["zzz.mystery.weight"] = 0.1 * rng.standard_normal((70, 64)).astype("f4")
    return {("unrecognised", "zzz.mystery.weight")}


def constant(state, config, rng):
    key = pick(rng)
    shape = state[key].shape
    state[key][:] = float(rng.choice([-1, 1])) * like_noise(shape) / np.prod(shape) ** 0.5
    return {("constant", key)}


def duplicate(state, config, rng):
    place = str(rng.choice(PLACES))
    first, second = sorted(int(i) for i in rng.choice(LAYERS, 2, replace=False))
    state[name(second, place)] = state[name(first, place)].copy()
    return {("duplicate", name(second, place))}


def stored_twice(state, config, rng):
    state[HEAD] = state[EMBED].copy()
    return {("stored_twice", EMBED)}  # safetensors lists lm_head first


def rank(state, config, rng):
    key = pick(rng)
    state[key] = of_deficient_rank(state[key].shape, 5, int(rng.integers(99)))
    return {("rank", key)}


def degenerate(state, config, rng):
    key = pick(rng)
    sigma = np.full(min(state[key].shape), like_noise(state[key].shape))
    state[key] = with_singular_values(sigma, state[key].shape, int(rng.integers(99))).astype("f4")
    return {("degenerate", key)}


def dead_rows(state, config, rng):
    key = pick(rng)
    state[key][rng.integers(state[key].shape[0])] = 0
    return {("dead_rows", key)}


def dead_cols(state, config, rng):
    key = pick(rng)
    state[key][:, rng.integers(state[key].shape[1])] = 0
    return {("dead_cols", key)}


def dead_tokens(state, config, rng):
    state[EMBED][rng.choice(VOCABULARY, 3, replace=False)] = 0
    return {("dead_tokens", EMBED)}


def layer_gap(state, config, rng):
    layer = int(rng.integers(1, LAYERS - 1))
    for key in [key for key in state if f"layers.{layer}." in key]:
        del state[key]
    return {("layer_gap", f"model.layers.{layer}"), ("layers", None)}


def layers(state, config, rng):
    config["num_hidden_layers"] = int(rng.choice([LAYERS - 1, LAYERS + 1]))
    return {("layers", None)}


def missing_matrix(state, config, rng):
    key = pick(rng)
    del state[key]
    return {("missing_matrix", key)}


def vocabulary(state, config, rng):
    """As after resize_token_embeddings without saving the configuration, and the other way round."""
    rows = int(rng.choice([150, VOCABULARY + 8]))
    state[HEAD] = np.resize(state[HEAD], (rows, WIDTH)) + 0.01 * rng.standard_normal((rows, WIDTH)).astype("f4")
    return {("vocabulary", HEAD)}


def hidden_size(state, config, rng):
    config["hidden_size"] = 2 * WIDTH
    return {("hidden_size", EMBED), ("hidden_size", HEAD)}


def tied(state, config, rng):
    config["tie_word_embeddings"] = True
    return {("tied", HEAD)}


def head(state, config, rng):
    del state[HEAD]
    return {("head", None)}


def norm_outlier(state, config, rng):
    key = pick(rng)
    state[key] *= np.float32(OUTLIER_FACTOR if rng.random() < 0.5 else 1 / OUTLIER_FACTOR)
    return {("norm_outlier", key)}


FAULTS = (
    nonfinite, nonfinite_gain, saturated, saturated_gain, negative_variance, denormal, zero, empty, unread, unrecognised, constant,
    duplicate, stored_twice, rank, degenerate, dead_rows, dead_cols, dead_tokens, layer_gap, layers, missing_matrix,
    vocabulary, hidden_size, tied, head, norm_outlier,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_found_and_nothing_else(tmp_path, fault, seed):
    state, config = llama(seed), dict(CONFIG)
    expected = fault(state, config, np.random.default_rng(seed + 100))
    audit = specdiag.audit(save(tmp_path / "model", state, config), device="cpu")
    assert found(audit) == expected
    if fault not in (zero, constant, layer_gap, stored_twice):  # of which the report alone tells as much
        return
    report = specdiag.analyze(tmp_path / "model", device="cpu")
    assert found(specdiag.audit(report)) == {f for f in expected if f[0] != "layers"}


def test_many_faults_at_once(tmp_path):
    rng = np.random.default_rng(5)
    state, config = llama(5), dict(CONFIG)
    expected = set()
    taken: set[str | None] = set()
    for fault in (nonfinite, nonfinite_gain, denormal, zero, constant, dead_rows, dead_cols, rank, norm_outlier, head):
        trial, settings = {key: value.copy() for key, value in state.items()}, dict(config)
        new = fault(trial, settings, rng)
        while {module for _, module in new} & taken:
            trial, settings = {key: value.copy() for key, value in state.items()}, dict(config)
            new = fault(trial, settings, rng)
        state, config, expected = trial, settings, expected | new
        taken |= {module for _, module in new}
    audit = specdiag.audit(save(tmp_path / "model", state, config), device="cpu")
    assert found(audit) == expected
    assert [f.severity for f in audit.findings] == sorted((f.severity for f in audit.findings), key="fail warn".find)


def test_every_check_is_planted_somewhere():
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_audit_*.py"))
    assert [
        check for check in default_checks() if f'("{check}", ' not in source and f', "{check}")' not in source
    ] == []
