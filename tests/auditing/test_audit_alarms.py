"""`audit(alarms=True)`: planted faults become findings with directions and layers, healthy models pass, and unknowns are listed."""

import json

import numpy as np
import pytest
from command import outcome
from models import write_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file
from wired_models import random_model

import specdiag
from specdiag.auditing.direction_file import DIRECTION_CHECKS
from specdiag.auditing.thresholds import default_checks

WIDTH, LAYERS = 64, 9
SIZES = {"hidden_size": WIDTH, "intermediate_size": 160, "num_hidden_layers": LAYERS}
ALARMS = [check.id for check in default_checks().values() if check.by.startswith("alarms.")]


@pytest.fixture(scope="module")
def llama():
    model = random_model("llama", **SIZES)
    return {k: v.float().numpy() for k, v in model.state_dict().items()}, model.config.to_dict()


@pytest.fixture(scope="module")
def gpt2():
    model = random_model("gpt2", n_embd=WIDTH, n_inner=160, n_layer=LAYERS)
    return {k: v.float().numpy() for k, v in model.state_dict().items()}, model.config.to_dict()


def unit(seed=0):
    r = np.random.default_rng(seed).standard_normal(WIDTH)
    return r / np.linalg.norm(r)


def edited(state, layers, strength, r):
    state = dict(state)
    for layer in layers:
        for place in ("self_attn.o_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{place}.weight"
            state[name] = (state[name] - strength * np.outer(r, r @ state[name])).astype("f4")
    return state


def audited(folder, state, config, **options):
    write_checkpoint(folder, state, config)
    return specdiag.audit(folder, device="cpu", reference_model=False, **options)


@pytest.mark.usefixtures("with_transformers")
def test_a_config_of_another_model_tells_nothing_of_the_directions(tmp_path, llama):
    state, config = llama
    renamed = {k.replace("model.layers.", "trunk.blocks."): v for k, v in edited(state, range(3), 1, unit()).items()}
    write_checkpoint(tmp_path / "m", renamed, config)
    unaware = specdiag.audit(tmp_path / "m", device="cpu", reference_model=False)
    assert of_alarms(unaware, "removed_direction")
    aware = specdiag.audit(tmp_path / "m", device="cpu")
    assert not of_alarms(aware, "removed_direction")
    assert aware.coverage.not_checked["removed_direction"].startswith("config.json is that of another model")


def of_alarms(audit, *checks):
    return {(f.check, f.module) for f in audit.findings if f.check in (checks or ALARMS)}


def test_a_healthy_model_passes(tmp_path, llama, gpt2):
    for state, config in (llama, gpt2):
        audit = audited(tmp_path / config["model_type"], state, config, alarms=True)
        assert of_alarms(audit, *DIRECTION_CHECKS, "overflow", "range_fp16") == set()
        assert {"removed_direction", "shared_direction", "overflow", "score_bound"} <= set(audit.coverage.checks)
        assert audit.coverage.not_checked["range_fp8"] == "switched off"


@pytest.mark.parametrize("layers", [(4,), (2, 3, 4), range(LAYERS)], ids=len)
def test_an_edit_is_found_with_its_layers_and_saved(tmp_path, llama, layers):
    state, config = llama
    r = unit()
    audit = audited(tmp_path / "m", edited(state, layers, 1.0, r), config, alarms=True,
                    save_directions=tmp_path / "r.safetensors")  # fmt: skip
    found = of_alarms(audit, *DIRECTION_CHECKS)
    down = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in layers}
    assert {module for check, module in found if check == "removed_direction"} == down
    assert all({*w.layers} == {*layers} for w in audit.alarms.writers if w.key in down)
    assert (("removed_direction_model", f"layers 0 to {LAYERS - 1}") in found) == (len(layers) >= 3)
    assert len(layers) < LAYERS or ("removed_direction_layers", "layers 0 to 7") in found
    assert ("shared_direction", f"model.layers.{layers[0]}.mlp.down_proj.weight") in found
    assert audit.verdict == "warn"
    saved = load_file(tmp_path / "r.safetensors")
    assert down <= saved.keys() == {module for _, module in found}
    for name in down:
        assert saved[name].shape == (1, WIDTH)
        assert abs(saved[name][0] @ r) == pytest.approx(1, abs=1e-5)
    with safe_open(tmp_path / "r.safetensors", "np") as file:
        assert file.metadata()["source"] == str(tmp_path / "m")


def test_the_spectra_of_an_audit_show_a_strong_edit_without_alarms(tmp_path, llama):
    state, config = llama
    name = "model.layers.3.mlp.down_proj.weight"
    audit = audited(tmp_path / "a", edited(state, [3], 1.0, unit()), config)
    assert ("removed_direction", name) in of_alarms(audit)
    assert audit.alarms is None
    assert audit.coverage.not_checked["shared_direction"] == "needs alarms=True"
    spectrum = np.linalg.svd(edited(state, [3], 0.9, unit())[name].astype("f8"), compute_uv=False) ** 2
    audit = audited(tmp_path / "b", edited(state, [3], 0.9, unit()), config)
    (finding,) = (f for f in audit.findings if f.check == "removed_direction")
    assert finding.value == pytest.approx(spectrum[-1] / spectrum[-2], rel=1e-5)
    assert of_alarms(audited(tmp_path / "c", state, config)) == set()


def test_layer_norms_need_alarms_and_do_not_raise_them(tmp_path, gpt2):
    state, config = gpt2
    state = dict(state)
    for layer in range(LAYERS):  # what LayerNorm does not see, taken out of each writer: its output side is the last
        for place in ("attn.c_proj", "mlp.c_proj"):
            name = f"transformer.h.{layer}.{place}.weight"
            state[name] = state[name] - state[name].mean(axis=1, keepdims=True)
    audit = audited(tmp_path, state, config)
    assert audit.coverage.not_checked["removed_direction"] == "needs alarms=True where norms are LayerNorms"
    audit = specdiag.audit(tmp_path, device="cpu", reference_model=False, alarms=True)
    assert of_alarms(audit, *DIRECTION_CHECKS) == set()
    r = unit() - unit().mean()
    name = "transformer.h.5.mlp.c_proj.weight"
    state[name] = (state[name] - state[name] @ np.outer(r, r) / (r @ r)).astype("f4")
    audit = audited(tmp_path / "b", state, config, alarms=True)
    assert of_alarms(audit, "removed_direction") == {("removed_direction", name)}


def test_a_massive_channel_is_named(tmp_path, llama):
    state, config = llama
    state = dict(state)
    for layer in range(LAYERS):
        state[f"model.layers.{layer}.mlp.down_proj.weight"] = (
            state[f"model.layers.{layer}.mlp.down_proj.weight"] * np.where(np.arange(WIDTH) == 17, 2, 1)[:, None]
        ).astype("f4")
    audit = audited(tmp_path, state, config, alarms=True)
    assert of_alarms(audit, "massive_channel") == {("massive_channel", "channel 17")}
    assert audit.alarms.channels[0].size == pytest.approx(2, rel=0.2)


def test_a_certain_overflow_is_a_failure_where_the_model_is_computed_in_float16(tmp_path, llama, gpt2):
    state, config = llama
    name, gate = "model.layers.2.post_attention_layernorm.weight", "model.layers.2.mlp.gate_proj.weight"
    huge = state | {name: np.full(WIDTH, 6e4, "f4"), gate: 5 * state[gate]}
    for dtype, expected in (("float16", {("overflow", gate)}), ("bfloat16", set())):
        audit = audited(tmp_path / dtype, huge, config | {"dtype": dtype}, alarms=True)
        assert of_alarms(audit, "overflow") == expected
        assert (audit.verdict == "fail") == bool(expected)
    assert ("range_fp16", gate) in of_alarms(audit)
    state, config = gpt2
    key = "transformer.h.1.ln_2.bias"
    shifted = state | {key: np.full(WIDTH, 3e4, "f4")}
    audit = audited(tmp_path / "gpt2", shifted, config | {"dtype": "float16"}, alarms=True)
    assert of_alarms(audit, "overflow") == {("overflow", "transformer.h.1.mlp.c_fc.weight")}


def test_bounds_of_each_type(tmp_path, llama):
    state, config = llama
    name, reader = "model.layers.2.input_layernorm.weight", "model.layers.2.self_attn.q_proj.weight"
    huge = state | {name: np.full(WIDTH, 2e38, "f4")}
    audit = audited(tmp_path, huge, config, alarms=True, thresholds={"range_fp8": {"enabled": True}})
    assert {("range_bf16", name), ("range_bf16", reader), ("range_fp8", reader)} <= of_alarms(audit)


def test_norms_whose_largest_output_must_overflow(tmp_path, llama):
    state, config = llama
    name = "model.layers.2.input_layernorm.weight"
    audit = audited(tmp_path, state | {name: np.full(WIDTH, 7e4, "f4")}, config | {"dtype": "float16"}, alarms=True)
    (finding,) = (f for f in audit.findings if (f.check, f.module) == ("overflow", name))
    assert (finding.value, finding.threshold, finding.severity) == (pytest.approx(7e4), 65504, "fail")


@pytest.mark.parametrize(
    ("changes", "config", "check", "said"),
    [
        ({}, {"model_type": "novel"}, "massive_channel", "Wiring of model_type novel is unknown: its alarms are left out"),
        ({}, {"model_type": "novel"}, "removed_direction", "Wiring of model_type novel is unknown: its alarms are left out"),
        ({}, {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_parameters": None}, "score_bound",
         "rotary positions of type yarn scale its scores"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_not_checked_with_its_reason(tmp_path, llama, changes, config, check, said):
    state, settings = llama
    audit = audited(tmp_path, state | changes, settings | config, alarms=True)
    assert said in audit.coverage.not_checked[check]


def test_one_strange_block_is_left_out_alone(tmp_path, llama):
    state, config = llama
    spoiled = state["model.layers.1.mlp.up_proj.weight"].copy()
    spoiled[0, 0] = np.nan
    audit = audited(tmp_path, state | {"model.layers.1.mlp.up_proj.weight": spoiled}, config, alarms=True)
    assert any("model.layers.1.mlp.up_proj.weight holds values that are not finite" in n for n in audit.alarms.notes)
    assert {w.layer for w in audit.alarms.writers if "down" in w.key} == {*range(LAYERS)} - {1}
    assert len(audit.alarms.scores) == LAYERS * 4


def test_arguments_that_do_not_go_together(tmp_path, llama):
    report = specdiag.analyze(llama[0], device="cpu")
    with pytest.raises(specdiag.UsageError, match="alarms needs the checkpoint itself"):
        specdiag.audit(report, alarms=True)
    with pytest.raises(specdiag.UsageError, match="save_directions= needs alarms=True"):
        specdiag.audit(report, save_directions=tmp_path / "r.safetensors")
    write_checkpoint(tmp_path / "m", *llama)
    weights = next((tmp_path / "m").glob("*.safetensors"))
    before = weights.read_bytes()
    with pytest.raises(specdiag.UsageError, match="exists and holds no directions"):
        specdiag.audit(tmp_path / "m", alarms=True, save_directions=weights)
    with pytest.raises(specdiag.UsageError, match=r"name a \.safetensors file"):
        specdiag.audit(tmp_path / "m", alarms=True, save_directions=tmp_path / "r.txt")
    assert weights.read_bytes() == before
    assert specdiag.audit(report).coverage.not_checked["massive_channel"].startswith("a report does not say")


def test_the_command_shows_and_saves(tmp_path, llama):
    state, config = llama
    write_checkpoint(tmp_path / "m", edited(state, range(3), 1.0, unit()), config)
    plain = ("audit", tmp_path / "m", "--no-reference-model")
    code, out, err = outcome(*plain, "--alarms", "--save-directions", tmp_path / "r.safetensors", width=112)
    assert code == 0, err
    assert "1 direction, strength at least 1; it lacks in layers 0 to 2." in " ".join(out.split())
    assert "into down" in out
    assert (tmp_path / "r.safetensors").exists()
    code, out, _ = outcome(*plain, "--alarms", "-f", "json")
    alarms = json.loads(out)["alarms"]
    assert {row["role"] for row in alarms["ranges"]} >= {"q", "o", "into down", "down", "norm"}
    code, out, _ = outcome(*plain, "--alarms", "-f", "md")
    assert "### alarms" in out
    for wrong, said in (
        (("--save-directions", tmp_path / "r.safetensors"), "--save-directions needs --alarms"),
        ((tmp_path / "m2", "--alarms", "--save-directions", tmp_path / "r.safetensors"), "takes one SOURCE"),
    ):
        code, _, err = outcome(*plain, *wrong)
        assert (code, said in " ".join(err.split())) == (2, True), err


def test_real_models(asset, minilm):
    for source, n_heads in ((minilm, 72), (asset("smollm2-gguf"), 270)):
        audit = specdiag.audit(source, alarms=True, device="cpu", reference_model=False)
        assert of_alarms(audit, *DIRECTION_CHECKS, "overflow", "score_bound") == set()
        assert len(audit.alarms.scores) == n_heads
        assert audit.alarms.notes == ()
    by_role = {}
    for row in audit.alarms.ranges:
        by_role.setdefault(row.role, []).append(row.bound)
    passed = {role: (sum(b <= 65504 for b in held), sum(b <= 448 for b in held)) for role, held in by_role.items()}
    assert passed["o"] == (30, 5)
    assert passed["into down"] == (30, 1)
    assert passed["down"][0] >= 26
    assert all(passed[role] == (30, 30) for role in ("q", "k", "v", "gate", "up"))
    assert [c.channel for c in audit.alarms.channels[:3]] == [507, 247, 17]
    assert max(s.at_positions / s.bound for s in audit.alarms.scores) <= 1
