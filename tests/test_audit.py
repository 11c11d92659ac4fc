"""The auditor: every fault planted at random places is found and nothing else fires; near-misses stay quiet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from helpers import with_singular_values
from hub_stand_in import HubStandIn, Repo
from safetensors.numpy import save_file
from specdiag_cli.main import app
from typer.testing import CliRunner

import specdiag
from specdiag.auditing.records import AuditReport
from specdiag.auditing.thresholds import checks_table, default_checks, load_checks
from specdiag.errors import SourceError, UsageError
from specdiag.records import ModuleRecord, Provenance, Settings, Source, Summary
from specdiag.report import SpectralReport, load_report

LAYERS, WIDTH, HIDDEN, VOCABULARY = 10, 64, 160, 200
PLACES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CONFIG = {
    "rope_scaling": {"factor": 8.0, "type": "linear"},
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    "hidden_size": WIDTH, "num_attention_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
OUTLIER_FACTOR = 10.0


def name(layer: int, place: str) -> str:
    return f"model.layers.{layer}.{place}.weight"


def llama(seed: int = 0, layers: int = LAYERS, width: int = WIDTH, hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {EMBED: (VOCABULARY, width), HEAD: (VOCABULARY, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        for place in PLACES:
            rows, cols = (hidden if "gate" in place or "up" in place else width), (hidden if "down" in place else width)
            shapes[name(layer, place)] = (rows, cols)
        shapes[name(layer, "input_layernorm")] = (width,)
    return {key: 1 + 0.02 * rng.standard_normal(shape).astype("f4") if len(shape) == 1
            else 0.1 * rng.standard_normal(shape).astype("f4") for key, shape in shapes.items()}  # fmt: skip


def save(folder: Path, state: dict[str, np.ndarray], config: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def found(audit: AuditReport) -> set[tuple[str, str | None]]:
    return {(f.check, f.module) for f in audit.findings}


def pick(rng: np.random.Generator, places=PLACES) -> str:
    return name(int(rng.integers(LAYERS)), str(rng.choice(places)))


def like_noise(shape: tuple[int, ...]) -> float:
    """Spectral norm of the matrices of `llama`."""
    return 0.1 * (shape[0] ** 0.5 + shape[1] ** 0.5)


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
    return {("unread", key)}


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
    n = min(state[key].shape)
    sigma = np.r_[np.linspace(0.5, 1, n - 5), np.zeros(5)] * like_noise(state[key].shape)
    state[key] = with_singular_values(sigma, state[key].shape, int(rng.integers(99))).astype("f4")
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
    nonfinite, nonfinite_gain, saturated, saturated_gain, denormal, zero, empty, unread, unrecognised, constant,
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
    report = specdiag.analyze(tmp_path / "model", device="cpu", square=False)
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


# Near-misses: each lies just within the threshold.


def some_denormals(state, config, rng):
    key = pick(rng)
    state[key][rng.random(state[key].shape) < 0.005] = 1e-40


def half_precision(state, config, rng):
    """float16 has denormals by nature: 1 in 40 weights of this size."""
    for key in state:
        state[key] = (state[key] * 2**-6).astype("f2") if state[key].ndim > 1 else state[key].astype("f2")


def large_but_not_the_largest(state, config, rng):
    state["model.norm.weight"][0] = np.nextafter(np.finfo("f4").max, np.float32(0))


def nearly_zero(state, config, rng):
    key = pick(rng)
    state[key][0] = 1e-6


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
    n = min(state[key].shape)
    sigma = np.r_[np.linspace(0.5, 1, n - 3), np.zeros(3)] * like_noise(state[key].shape)
    state[key] = with_singular_values(sigma, state[key].shape, 1).astype("f4")


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
    """One such layer is a design: what is lost alone is a tensor."""
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


def heavy(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A matrix as training makes them: a power law of singular values."""
    sigma = np.sort(np.random.default_rng(seed).pareto(3, min(shape)) + 0.3)
    return with_singular_values(sigma, shape, seed)


def wide(seed: int = 0) -> dict[str, torch.Tensor]:
    keys = [name(layer, place) for layer in range(2) for place in PLACES[:4]]
    return {key: torch.from_numpy(heavy(seed + i, (256, 256))).float() for i, key in enumerate(keys)}


def test_matrices_like_noise_where_others_are_not():
    rng = np.random.default_rng(3)
    state = wide()
    keys = [str(key) for key in rng.choice(list(state), 2, replace=False)]
    for key in keys:
        state[key] = torch.from_numpy(rng.standard_normal((256, 256))).float()
    assert found(specdiag.audit(wide(), device="cpu")) == set()
    assert found(specdiag.audit(state, device="cpu")) == {("random", key) for key in keys}
    spiked = state | {keys[0]: state[keys[0]] + 0.25 * torch.outer(torch.randn(256), torch.randn(256))}
    assert found(specdiag.audit(spiked, device="cpu")) == {("random", keys[1])}
    noise = {key: torch.from_numpy(rng.standard_normal((256, 256))).float() for key in state}
    audit = specdiag.audit(noise, device="cpu")
    assert found(audit) == {("untrained", None)}
    assert audit.findings[0].value == 1.0


def test_traps_are_huge_entries_or_a_mean():
    state = wide()
    huge, shifted, usual = list(state)[:3]
    rms = state[huge].square().mean().sqrt()
    state[huge][5, 9] = 60 * rms
    state[usual][5, 9] = 15 * state[usual].square().mean().sqrt()
    state[shifted] += 0.3 * state[shifted].square().mean().sqrt()
    audit = specdiag.audit(state, randomize=True, device="cpu")
    assert found(audit) == {("trap", huge), ("trap", shifted)}
    quiet = specdiag.audit(state, device="cpu")
    assert not quiet.findings
    assert quiet.coverage.not_checked["trap"] == "needs --randomize"


def test_against_a_baseline(tmp_path):
    old = llama(1, layers=4)
    new = {key: value.copy() for key, value in old.items()}
    changed, scaled, collapsed, cast, dropped = (name(1, place) for place in PLACES[:5])
    new[changed] *= np.float32(1.2)
    new[scaled] *= np.float32(1.6)
    new[collapsed] = with_singular_values(np.geomspace(1e-3, 30, WIDTH), (WIDTH, WIDTH)).astype("f4")
    new[cast] = new[cast].astype("f2")
    del new[dropped]
    new[EMBED] = np.r_[new[EMBED], np.ones((8, WIDTH), "f4") * np.arange(1, 9, dtype="f4")[:, None]]
    new["score.weight"] = 0.1 * np.random.default_rng(0).standard_normal((70, WIDTH)).astype("f4")
    old[name(2, PLACES[0])][:] = 0
    before, after = save(tmp_path / "a", old), save(tmp_path / "b", new)
    report = specdiag.analyze(before, device="cpu")
    audit = specdiag.audit(after, baseline=report, device="cpu")
    against = {pair for pair in found(audit) if pair[0].startswith("baseline")}
    other = ("baseline_norm", "baseline_alpha", "baseline_alpha_square", "baseline_stable_rank")
    revived = name(2, PLACES[0])
    assert {pair for pair in against if pair[0] not in (*other, "baseline_unchanged")} == {
        ("baseline_changed", changed), ("baseline_changed", scaled), ("baseline_changed", collapsed),
        ("baseline_changed", revived), ("baseline_status", revived), ("baseline_dtype", cast),
        ("baseline_missing", dropped), ("baseline_reshaped", EMBED), ("baseline_head", "score.weight"),
    }  # fmt: skip
    assert {pair for pair in against if pair[0] in other} == {
        ("baseline_norm", scaled), ("baseline_alpha", collapsed), ("baseline_alpha_square", collapsed),
        ("baseline_norm", collapsed), ("baseline_stable_rank", collapsed),
    }  # fmt: skip
    assert ("baseline_unchanged", HEAD) in against
    grown = specdiag.audit(before, baseline=after, device="cpu")
    assert ("baseline_extra", dropped) in found(grown)
    report.save(tmp_path / "r.json")
    same = specdiag.audit(tmp_path / "r.json", baseline=tmp_path / "r.json")
    assert not any(f.check.startswith("baseline") for f in same.findings)


def test_a_baseline_below_a_head_is_compared_by_what_both_names_share():
    inner = wide()
    audit = specdiag.audit(inner, baseline={f"backbone.{key}": value for key, value in inner.items()}, device="cpu")
    assert not audit.findings


def test_a_baseline_of_another_rule_is_not_compared_by_alpha():
    state = wide()
    other = specdiag.analyze(state, tail="hill-paper", square=False, device="cpu")
    audit = specdiag.audit(state, baseline=other, device="cpu")
    assert not audit.findings
    assert audit.coverage.not_checked["baseline_alpha"] == "the tail is hill here and hill-paper in the baseline"
    assert audit.coverage.not_checked["baseline_alpha_square"] == "needs alpha_square in both reports"


def decayed(rms: float, n: int = 12, spread: float = 1.1) -> SpectralReport:
    sizes = rms * spread ** np.linspace(-1, 1, n)
    return made(
        [
            row(name(i, PLACES[0]), "q", i, frobenius_norm=float(size) * 64, rows=64, cols=64)
            for i, size in enumerate(sizes)
        ]
    )


def row(key: str, role: str, layer: int | None, **more) -> ModuleRecord:
    family = {"embed": "embedding", "head": "embedding", "other": "other"}.get(role, "attention")
    values = {"rows": 512, "cols": 512, "storage_dtype": "F32", "status": "ok", "tail": "hill", "method": "gram",
              "compute_dtype": "float64"} | more  # fmt: skip
    return ModuleRecord(name=key, role=role, family=family, layer=layer, **values)


def made(records, *, complete=True, files=(), **settings) -> SpectralReport:
    n = len(records)
    return SpectralReport(
        source=Source(kind="file", location="made", files=files), settings=Settings(**settings), records=tuple(records),
        skipped=(), complete=complete,
        summary=Summary(n_tensors=n, n_parameters=n, n_matrices=n, analysed_parameters=n, skipped={}, statuses={},
                        roles=(), contrasts=()),
        provenance=Provenance(created="", versions={}, platform="", device="cpu", device_name="", jobs=1, seconds=0.0,
                              peak_bytes=0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rms", "answer", "fires"),
    [
        (0.0707, "consistent", False),  # in balance: sqrt(1e-3 / (2 * 0.1)), S1 of the reference
        (0.0707 * 0.45, "consistent", False),  # after a cosine to zero
        (0.0707 * 1.6, "consistent", False),
        (0.0707 * 2.5, "inconsistent", True),
        (0.0707 * 0.45 / 2.5, "inconsistent", True),
        (0.0707 * 2, "cannot tell", False),
    ],
)
def test_decay_is_consistent_or_not_and_never_a_number(rms, answer, fires):
    audit = specdiag.audit(decayed(rms), weight_decay=0.1, lr=1e-3)
    assert audit.decay is not None
    assert audit.decay.answer == answer
    assert audit.decay.expected_high == pytest.approx(0.0707106781)
    assert found(audit) == ({("decay", None)} if fires else set())
    if fires:
        assert audit.findings[0].value == pytest.approx(2.5, rel=1e-3)


def test_decay_cannot_be_told_from_little(tmp_path):
    assert specdiag.audit(decayed(0.5, n=7), weight_decay=0.1, lr=1e-3).decay.answer == "cannot tell"
    short = specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=9_000)
    assert short.decay.answer == "cannot tell"
    assert "10000 over which weights forget" in short.decay.reason
    assert specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=20_000).decay.answer == "inconsistent"
    for wrong in ({"weight_decay": 0.1}, {"lr": 1e-3}, {"weight_decay": 0.0, "lr": 1.0}, {"steps": 9},
                  {"weight_decay": 2.0, "lr": 1.0}, {"weight_decay": 0.1, "lr": 1e-3, "steps": 0}):  # fmt: skip
        with pytest.raises(UsageError):
            specdiag.audit(decayed(0.5), **wrong)


def shard(folder: Path, state: dict[str, np.ndarray], total: int = 2) -> tuple[Path, dict[str, str]]:
    """Saved in shards; the index is still to be written."""
    save(folder, {})
    (folder / "model.safetensors").unlink()
    places = {key: f"model-{i % total + 1:05}-of-{total:05}.safetensors" for i, key in enumerate(state)}
    for file in set(places.values()):
        save_file({key: np.ascontiguousarray(state[key]) for key in state if places[key] == file}, folder / file)
    return folder, places


def test_shards_and_tensors_that_nobody_lists(tmp_path):
    state = llama(0)
    folder, places = shard(tmp_path / "model", state)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert not specdiag.audit(folder, device="cpu").findings
    forgotten = name(4, PLACES[3])
    index.write_text(json.dumps({"weight_map": {key: file for key, file in places.items() if key != forgotten}}))
    save_file({"old.weight": state[EMBED]}, folder / "model-00003-of-00003.safetensors")
    save_file({"other.weight": state[EMBED]}, folder / "consolidated.safetensors")
    audit = specdiag.audit(folder, device="cpu")
    assert found(audit) == {("unlisted", forgotten), ("extra_shard", "model-00003-of-00003.safetensors")}
    one = specdiag.audit(folder, file="model-00001-of-00002.safetensors", device="cpu")
    assert not one.findings
    assert one.coverage.not_checked["layers"] == "model-00001-of-00002.safetensors is one shard of 2"
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match="lacks model-00002-of-00002"):
        specdiag.audit(folder, device="cpu")


def test_failed_and_interrupted():
    audit = specdiag.audit(made([row("a", "q", None, status="failed"), row("b", "q", None)], complete=False))
    assert found(audit) == {("failed", "a"), ("incomplete", None)}
    assert audit.coverage.not_checked["missing_matrix"] == "the report is incomplete"


def test_what_a_part_of_a_checkpoint_lacks_says_nothing(tmp_path):
    state = llama(0)
    folder = save(tmp_path / "model", state)
    audit = specdiag.audit(folder, exclude="*layers.4*", device="cpu")
    assert not audit.findings
    assert audit.coverage.not_checked["layer_gap"] == "only a selection of the matrices was asked for"
    shard = specdiag.audit(made([row("a", "q", 0)], files=("model-00001-of-00002.safetensors",)))
    assert shard.coverage.not_checked["layer_gap"] == "model-00001-of-00002.safetensors is one shard of 2"


def test_every_check_is_planted_somewhere():
    source = Path(__file__).read_text()
    assert [check for check in default_checks() if f'("{check}", ' not in source] == []


# Thresholds of a user


def test_overrides(tmp_path):
    state, config = llama(0), dict(CONFIG)
    state[name(2, PLACES[0])][:3] = 0
    folder = save(tmp_path / "model", state, config)
    toml = tmp_path / "mine.toml"
    toml.write_text('[dead_rows]\nseverity = "fail"\nthreshold = 0.04\n[zero]\nenabled = false\n')
    (finding,) = specdiag.audit(folder, thresholds=toml, device="cpu").findings
    assert (finding.severity, finding.threshold, finding.value) == ("fail", 0.04, 3 / 64)
    quiet = specdiag.audit(folder, thresholds={"dead_rows": {"threshold": 3 / 64}}, device="cpu")
    assert quiet.verdict == "pass"
    off = specdiag.audit(folder, thresholds={"dead_rows": {"enabled": False}}, device="cpu")
    assert off.coverage.not_checked["dead_rows"] == "switched off"
    few = specdiag.audit(
        save(tmp_path / "two", llama(0, 2)), thresholds={"norm_outlier": {"at_least": 2}}, device="cpu"
    )
    assert [f.check for f in few.findings] == ["layers"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[nonsense]\nthreshold = 1", "there is no check 'nonsense'; the checks are nonfinite, saturated"),
        ("[rank]\nlimit = 1", "'rank' has no 'limit' to change; it has threshold, severity, enabled"),
        ("[zero]\nthreshold = 1", "'zero' has no 'threshold' to change; it has severity, enabled"),
        ("[rank]\nat_least = 1", "'rank' has no 'at_least' to change"),
        ('[rank]\nseverity = "fatal"', "'rank' is not understood"),
        ('[rank]\nthreshold = "low"', "'rank' is not understood"),
        ("rank = 3", "'rank' is not understood"),
        ("[rank]\nthreshold = -0.1", "threshold -0.1 of 'rank' must be a number of at least 0"),
        ("[rank]\nthreshold = nan", "must be a number of at least 0"),
        ("[rank\n", "is no TOML"),
    ],
)
def test_wrong_overrides_are_named(tmp_path, text, said):
    toml = tmp_path / "mine.toml"
    toml.write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        load_checks(toml)
    with pytest.raises(UsageError, match="cannot be read"):
        load_checks(tmp_path / "absent.toml")


def test_the_table_in_the_docs_is_that_of_the_checks():
    page = (Path(__file__).parents[1] / "docs" / "audit.md").read_text()
    assert page.split("<!-- checks -->\n")[1].split("<!-- /checks -->")[0].strip() == checks_table().strip()


# Sources


def test_a_report_is_taken_as_it_is(tmp_path):
    report = specdiag.analyze(wide(), device="cpu", square=False)
    with pytest.raises(UsageError, match="a report is taken as it is: randomize needs the checkpoint itself"):
        specdiag.audit(report, randomize=True)
    report.save(tmp_path / "r.json")
    assert specdiag.audit(tmp_path / "r.json") == specdiag.audit(load_report(tmp_path / "r.json"))
    audit = specdiag.audit(report)
    assert audit.coverage.n_others is None
    assert "a report does not carry config.json" in audit.coverage.not_checked["layers"]


@pytest.mark.parametrize("as_model", [False, True])
def test_models_and_state_dicts_in_memory(as_model):
    layer = torch.nn.TransformerEncoderLayer(64, 4, 160)
    with torch.no_grad():
        layer.norm1.weight[3] = torch.nan
        layer.linear1.weight[5] = 0
    audit = specdiag.audit(layer if as_model else layer.state_dict(), device="cpu")
    assert found(audit) == {("nonfinite", "norm1.weight"), ("dead_rows", "linear1.weight")}
    assert audit.coverage.n_others == 8


def test_an_open_checkpoint_and_an_adapter(tmp_path):
    from specdiag.analysis import open_source

    folder = save(tmp_path / "model", llama(0))
    audit = specdiag.audit(open_source(folder), device="cpu")
    assert (audit.verdict, audit.coverage.n_others) == ("pass", None)
    rng = np.random.default_rng(0)
    lora = {f"base_model.model.{name(i, PLACES[0])[:-7]}.lora_{side}.weight": rng.standard_normal(shape).astype("f4")
            for i in range(2) for side, shape in (("A", (8, 64)), ("B", (64, 8)))}  # fmt: skip
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    assert not specdiag.audit(tmp_path / "lora", device="cpu").findings


def test_ten_thousand_tensors_are_read_once(monkeypatch):
    from collections import Counter

    from specdiag.checkpoint import torch_tensors

    reads: Counter[str] = Counter()
    genuine = torch_tensors._read

    def counting(key, tensor, label, index=None):
        reads[key] += 1
        return genuine(key, tensor, label, index)

    monkeypatch.setattr(torch_tensors, "_read", counting)
    state = {}
    for layer in range(1250):
        for place in PLACES:
            state[name(layer, place)] = torch.randn(3, 3)
        state[name(layer, "input_layernorm")] = torch.ones(3)
    state[name(777, "input_layernorm")][1] = torch.inf
    audit = specdiag.audit(state, device="cpu")
    assert found(audit) == {("nonfinite", name(777, "input_layernorm"))}
    assert audit.coverage.n_matrices + audit.coverage.n_others == 10_000
    assert set(reads) == set(state)
    assert max(reads.values()) == 1


def test_ten_thousand_matrices_of_a_report_take_less_than_a_second(tmp_path):
    records = [
        row(name(i, PLACES[i % 7]), ("q", "k", "v", "o", "gate", "up", "down")[i % 7], i, alpha=2.0, z=-30.0,
            mp_spikes=9, stable_rank=40.0, spectral_norm=5.0, frobenius_norm=40.0, matrix_rank=512, n_eigenvalues=512,
            digest=f"{i:064x}", n_dead_rows=int(i % 500 == 0))
        for i in range(10_000)
    ]  # fmt: skip
    path = tmp_path / "large.specdiag.json"
    made(records).save(path)
    code = (
        "import sys, time; start = time.process_time(); import specdiag\n"
        f"audit = specdiag.audit({str(path)!r}); seconds = time.process_time() - start\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'heavy imports'\n"
        "print(seconds, len(audit.findings))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds, n = done.stdout.split()
    assert int(n) == 20
    assert float(seconds) < 1


# The command


def cli(*arguments, **options):
    return CliRunner().invoke(app, ["audit", *map(str, arguments)], **options)


@pytest.fixture
def faulty(tmp_path):
    """A report with a failure, a hundred warnings, and names that are markup."""
    hostile = "evil|`<script>alert(1)</script>`[x](javascript:1)\x1b[31m\n**bold**"
    records = [row(name(i, PLACES[0]), "q", i, n_dead_rows=1) for i in range(100)]
    path = tmp_path / "faulty.json"
    made([*records, row(hostile, "other", None, status="nonfinite", n_nonfinite=3)]).save(path)
    return path


def test_table(faulty):
    done = cli(faulty)
    assert done.exit_code == 1
    assert "FAIL: made: 1 fail, 100 warn" in done.stdout
    assert done.stdout.index("nonfinite") < done.stdout.index("dead_rows")
    assert "and 95 more (--all)" in done.stdout
    assert name(7, PLACES[0]) not in done.stdout
    assert done.stdout.count("What to do:") == 2
    assert "checks were made" in done.stdout
    assert "baseline_* (needs --baseline)" in done.stdout
    assert "\x1b[31m" not in done.stdout
    assert name(7, PLACES[0]) in cli(faulty, "--all").stdout


def test_markdown_shows_hostile_names_as_text(faulty):
    done = cli(faulty, "-f", "md")
    (line,) = [line for line in done.stdout.splitlines() if "evil" in line]
    assert "<script>" not in line
    assert r"evil\|\`&lt;script&gt;" in line
    assert r"\[x\](javascript:1)" in line
    assert r"\x1b" in line
    assert "and 95 more" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {4}


def test_json_has_a_schema_and_can_be_read_back(faulty, tmp_path):
    done = cli(faulty, "-f", "json")
    audit = msgspec.json.decode(done.stdout, type=AuditReport)
    assert (audit.schema, audit.verdict, audit.counts) == (1, "fail", {"fail": 1, "warn": 100, "info": 0})
    assert audit.findings[0].module.startswith("evil|`<script>")
    assert audit == specdiag.audit(faulty)
    assert all(f.why and f.advice for f in audit.findings)
    out = tmp_path / "audit.json"
    assert cli(faulty, "-o", out).exit_code == 1
    assert msgspec.json.decode(out.read_bytes(), type=AuditReport) == audit
    assert cli(faulty, "-f", "md", "-o", tmp_path / "audit.md").stdout == ""
    assert (tmp_path / "audit.md").read_text().startswith("## specdiag audit: FAIL")


def test_exit_codes(faulty, tmp_path):
    clean, warned = tmp_path / "clean.json", tmp_path / "warned.json"
    made([row("a", "q", None)]).save(clean)
    made([row("a", "q", None, n_dead_rows=1)]).save(warned)
    assert cli(clean, "--fail-on", "warn").exit_code == 0
    assert cli(warned).exit_code == 0
    assert cli(warned, "--fail-on", "warn").exit_code == 1
    assert cli(faulty).exit_code == 1
    (tmp_path / "softer.toml").write_text('[nonfinite]\nseverity = "info"\n')
    assert cli(faulty, "--thresholds", tmp_path / "softer.toml").exit_code == 0
    for wrong in (["--thresholds", tmp_path / "none.toml"], ["--randomize"], ["--role", "q"], ["--lr", "1e-3"],
                  ["-o", tmp_path / "no" / "where.json"], ["-f", "csv"], ["--fail-on", "info"]):  # fmt: skip
        assert cli(clean, *wrong).exit_code == 2, wrong
    assert cli(tmp_path / "absent.json").exit_code == 3
    assert cli(clean, "--baseline", tmp_path / "absent.json").exit_code == 3


def test_the_command_on_a_checkpoint_with_nan_and_a_decay(tmp_path):
    state = llama(0)
    state[name(1, PLACES[2])][0, 0] = np.nan
    folder = save(tmp_path / "model", state)
    done = cli(folder, "--weight-decay", "0.1", "--lr", "1e-3", "--role", "v", "--device", "cpu")
    assert done.exit_code == 1, done.output
    assert "consistent with weight decay 0.1 at lr 0.001" in done.stdout
    assert "This assumes AdamW" in done.stdout
    assert name(1, PLACES[2]) in done.stdout


def test_a_model_on_the_hub(tmp_path):
    state = llama(0, layers=1)
    state["model.norm.weight"][0] = np.nan
    folder = save(tmp_path / "model", state, CONFIG | {"num_hidden_layers": 1})
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    with HubStandIn({"org/model": Repo(files)}) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "specdiag", "audit", "org/model", "-f", "json", "--device", "cpu"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert hub.downloads().count("model.safetensors") == 1
    assert done.returncode == 1, done.stderr
    audit = msgspec.json.decode(done.stdout, type=AuditReport)
    assert found(audit) == {("nonfinite", "model.norm.weight")}
    assert audit.source.commit == hub.repos["org/model"].commit


def test_missing_files_are_source_errors(tmp_path):
    with pytest.raises(SourceError):
        specdiag.audit(tmp_path / "nothing")


# Real checkpoints


@pytest.mark.parametrize(
    ("asset_name", "file", "expected"),
    [
        # Its pooler is as BERT initialises it (RMS 0.0200, bias exactly 0): masked language modelling does not use it.
        ("rxnmapper", None, {("random", "albert.pooler.weight")}),
        ("chat-spx", None, set()),
        ("fracast", "model.safetensors", {("unrecognised", "core.block.pw.weight"), ("unrecognised", "core.scale.to_gb.weight")}),
        ("fracast", "model.int8.safetensors", {("unrecognised", "core.block.pw.weight"), ("unrecognised", "core.scale.to_gb.weight")}),
    ],
)  # fmt: skip
def test_real_checkpoints(asset, asset_name, file, expected):
    audit = specdiag.audit(asset(asset_name), file=file, device="cpu")
    assert found(audit) == expected


def test_the_pooler_that_minilm_never_used(minilm):
    """RMS 0.0091 (0.02 when initialised, decayed since), kurtosis 2.98, bias exactly 0: mean pooling does without it."""
    audit = specdiag.audit(minilm, device="cpu")
    assert found(audit) == {("random", "pooler.dense.weight")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_half_precision_makes_no_faults(rxnfp, dtype):
    """In bfloat16 up to 9 % of the singular values of queries and keys lie below the rounding; float16 has denormals."""
    path = rxnfp / "bert_pretrained" / "pytorch_model.bin"
    state = torch.load(path, map_location="cpu", weights_only=True)
    audit = specdiag.audit({key: value.to(dtype) for key, value in state.items()}, device="cpu")
    assert not audit.at_least("warn")


def test_fine_tuning_keeps_all_but_the_pooler(rxnfp):
    audit = specdiag.audit(rxnfp / "bert_ft", baseline=rxnfp / "bert_pretrained", device="cpu")
    assert {f.module for f in audit.at_least("warn")} == {"pooler.dense.weight"}
    assert {f.check for f in audit.findings} == {
        "baseline_alpha", "baseline_alpha_square", "baseline_norm", "baseline_stable_rank", "baseline_changed",
        "baseline_head",
    }  # fmt: skip
