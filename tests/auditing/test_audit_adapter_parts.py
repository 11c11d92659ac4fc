"""Parts of an adapter that its settings ask for and its file lacks, and parts that PEFT would not find.

What PEFT makes of each was tried with PEFT 0.18.1, 0.19.1 and 0.21.2: it stops, or leaves the base's weights there.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from adapter_files import LORA, lora, random, write
from models import write_checkpoint

import specdiag

LAYERS = 6
MODULES = [f"model.layers.{layer}.self_attn.{place}_proj" for layer in range(LAYERS) for place in "qv"]
SETTINGS = LORA | {"target_modules": ["q_proj", "v_proj"]}
LOST = "no update is of it, though the settings name it"


def whole():
    tensors = {}
    for seed, module in enumerate(MODULES):
        tensors |= lora(module, 64, 48, seed=seed)
    return tensors


def without(*parts):
    return {name: values for name, values in whole().items() if not any(part in name for part in parts)}


def base(folder, *left_out):
    state = {f"{module}.weight": random(64, 48, seed=i) for i, module in enumerate(MODULES)}
    state |= {"model.embed_tokens.weight": random(90, 48), "lm_head.weight": random(90, 48, seed=1)}
    return write_checkpoint(folder, {n: v for n, v in state.items() if not any(part in n for part in left_out)})


def parts(folder, tensors, settings=SETTINGS, **options):
    audit = specdiag.audit(write(folder, tensors, settings), device="cpu", reference_model=False, **options)
    watched = ("adapter_lost", "adapter_not_found", "adapter_empty", "adapter_targets", "layer_gap", "missing_matrix")
    return {(f.check, f.module): f.value for f in audit.findings if f.check in watched}


DORA = {f"base_model.model.{module}.lora_magnitude_vector": random(64, seed=i) for i, module in enumerate(MODULES)}
ZERO_RANK = {
    f"base_model.model.{MODULES[2]}.lora_A.weight": np.zeros((0, 48), "f4"),
    f"base_model.model.{MODULES[2]}.lora_B.weight": np.zeros((64, 0), "f4"),
}
FIRST = f"base_model.model.{MODULES[0]}."


@pytest.mark.parametrize(
    ("tensors", "settings", "found"),
    [
        (whole(), {}, {}),
        (whole() | ZERO_RANK, {}, {f"base_model.model.{MODULES[2]}.lora_{x}.weight": "its rank is 0" for x in "AB"}),
        (whole() | DORA, {"use_dora": True}, {}),
        (whole() | {n: v for n, v in DORA.items() if MODULES[3] not in n}, {"use_dora": True},
         {f"{MODULES[3]}.weight": "no DoRA magnitude, and use_dora is true"}),
        (whole(), {"modules_to_save": ["q_proj", "layers"]}, {"q_proj": "not there", "layers": "not there"}),
        (whole() | {"base_model.model.lm_head.weight": random(90, 48)}, {"modules_to_save": ["head"]}, {}),
        (whole() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 48)},
         {"trainable_token_indices": {"embed_tokens": [1, 2]}}, {}),
        (whole() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 48)},
         {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 3]}},
         {"trainable_token_indices.lm_head": "not there"}),
        (whole() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 48)},
         {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}}, {}),
        (whole() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 48)},
         {"trainable_token_indices": [1, 2, 3]},
         {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta":
          "its rows are not those that trainable_token_indices lists"}),
        (without(".3."), {}, {"model.layers.3": LOST}),
        (without(".3.self_attn.v"), {}, {f"{MODULES[7]}.weight": LOST}),
        (without(".0.", ".2.", ".3."), {"layers_to_transform": [1, 4, 5]}, {}),
        (without(".0.", ".2.", ".3.", ".4."), {"layers_to_transform": [1, 4, 5]},
         {"layers_to_transform.4": "no update is of this layer"}),
        (without(".0.", ".2.", ".3."), {"layers_to_transform": [1, 4, 5], "layers_pattern": "layers"}, {}),
        (without(".3."), {"target_modules": r".*layers\.[01245]\.self_attn\.[qv]_proj"}, {}),
        (without(".3."), {"exclude_modules": r".*layers\.3\..*"}, {}),
        (without(".0.", ".2.", ".4."), {}, {}),
        (without(".0.", ".1.", ".4."), {"target_modules": None}, {}),
    ],
)  # fmt: skip
def test_what_an_adapter_lacks(tmp_path, tensors, settings, found):
    assert parts(tmp_path, tensors, SETTINGS | settings) == {("adapter_lost", n): why for n, why in found.items()}


@pytest.mark.parametrize(
    ("tensors", "settings", "of_base", "found"),
    [
        (whole(), {}, (), {}),
        (without(".5."), {}, (), {"model.layers.5": LOST}),
        (without(".5."), {}, ("layers.5.",), {}),
        (without(".0.", ".1.", ".2.self_attn.q"), {}, ("layers.0.", "layers.1."), {f"{MODULES[4]}.weight": LOST}),
        (without(".0.", ".2."), {"layers_to_transform": [1, 3, 4, 5]}, (), {}),
        (without(".0.", ".2.", ".3."), {"layers_to_transform": [1, 3, 4, 5]}, (), {"model.layers.3": LOST}),
        (without("v_proj"), {}, (), {"target_modules.v_proj": LOST}),
        (without("v_proj"), {}, ("v_proj",), {}),
        (whole(), {"target_modules": ["q_proj", "v_proj", "query_key_value"]}, (), {}),
        (whole(), {"modules_to_save": ["lm_head", "score"]}, (), {"lm_head": "not there"}),
        (whole() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 48)},
         {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}}, (),
         {"trainable_token_indices.lm_head": "not there"}),
        (whole() | {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 48)},
         {"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1, 2]}}, ("lm_head",), {}),
    ],
)  # fmt: skip
def test_what_an_adapter_lacks_beside_its_base(tmp_path, tensors, settings, of_base, found):
    lost = parts(tmp_path / "a", tensors, SETTINGS | settings, base=base(tmp_path / "base", *of_base))
    assert lost == {("adapter_lost", name): why for name, why in found.items()}


@pytest.mark.parametrize(
    ("tensors", "settings", "name", "value"),
    [
        (whole(), None, "adapter_config.json", "not beside the adapter"),
        ({n.replace(".weight", ".default.weight"): v for n, v in whole().items()}, SETTINGS,
         f"{FIRST}lora_A.default.weight", "12 modules: a name as in memory, which holds that of the adapter"),
        ({n.removeprefix("base_model.model."): v for n, v in whole().items()}, SETTINGS,
         f"{MODULES[0]}.lora_A.weight", "12 modules: a name without base_model.model."),
        (whole() | DORA, SETTINGS, f"{FIRST}lora_magnitude_vector",
         "12 modules: a DoRA magnitude, and use_dora is not true"),
        (whole(), {n: v for n, v in SETTINGS.items() if n != "peft_type"}, "peft_type",
         "not in adapter_config.json, and PEFT stops without it"),
        (whole(), SETTINGS | {"peft_type": None}, "peft_type", "not in adapter_config.json, and PEFT stops without it"),
        (whole(), SETTINGS | {"task_type": "FOO"}, "task_type", "'FOO' is no task type of PEFT, which stops at it"),
        (whole(), SETTINGS | {"target_modules": "((("}, "target_modules",
         "PEFT stops at '(((', no regular expression: missing ), unterminated subpattern at position 2"),
        (whole(), SETTINGS | {"exclude_modules": "*"}, "exclude_modules",
         "PEFT stops at '*', no regular expression: nothing to repeat at position 0"),
        (whole(), SETTINGS | {"target_modules": []}, "target_modules", "empty: 12 modules with an update"),
    ],
)  # fmt: skip
def test_what_peft_would_not_find(tmp_path, tensors, settings, name, value):
    assert parts(tmp_path, tensors, settings) == {("adapter_not_found", name): value}


@pytest.mark.parametrize(
    "settings",
    [{"task_type": "CAUSAL_LM"}, {"task_type": None}, {"target_modules": r".*\.[qv]_proj"}, {"target_modules": None},
     {"target_modules": "ALL-LINEAR"}, {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]}],
)  # fmt: skip
def test_settings_that_peft_follows(tmp_path, settings):
    assert parts(tmp_path, whole(), SETTINGS | settings) == {}


def test_targets_of_no_update_fail_and_of_some_warn(tmp_path):
    outside = {("adapter_targets", f"{module}.weight"): "not among target_modules" for module in MODULES}
    assert parts(tmp_path / "a", whole(), SETTINGS | {"target_modules": ["k_proj"]}) == outside | {
        ("adapter_not_found", "target_modules"): "fits no update: 12 modules with an update"
    }
    assert parts(tmp_path / "b", whole(), SETTINGS | {"target_modules": ["q_proj"]}) == {
        key: value for key, value in outside.items() if "v_proj" in key[1]
    }


@pytest.mark.parametrize("name", ["adapter.safetensors", "model.safetensors"])
def test_files_that_peft_does_not_read(tmp_path, name):
    write(tmp_path, whole(), SETTINGS)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / name)
    found = specdiag.audit(tmp_path, device="cpu", reference_model=False).findings
    assert [(f.check, f.severity, f.module) for f in found if f.severity != "info"] == [
        ("adapter_not_found", "fail", name)
    ]


def test_the_settings_of_an_adapter_beside_a_model(tmp_path):
    def beside():
        found = specdiag.audit(tmp_path, device="cpu", reference_model=False).findings
        return [(f.check, f.module, f.severity) for f in found if f.check == "adapter_beside"]

    base(tmp_path)
    assert not beside()
    (tmp_path / "adapter_config.json").write_text(json.dumps(SETTINGS))
    assert beside() == [("adapter_beside", "adapter_config.json", "warn")]
    write(tmp_path, whole(), SETTINGS)
    assert not beside()


def test_long_settings_are_shortened_where_they_are_shown(tmp_path):
    long = "x" * 5_000_000
    settings = SETTINGS | {"base_model_name_or_path": long, "modules_to_save": [long], "task_type": long}
    audit = specdiag.audit(write(tmp_path, whole(), settings), device="cpu", reference_model=False)
    assert {f.check for f in audit.findings if f.severity == "fail"} == {"adapter_lost", "adapter_not_found"}
    assert len(repr(audit)) < 50_000


def test_files_of_other_programs_have_no_settings(tmp_path):
    write(tmp_path, whole())
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "pytorch_lora_weights.safetensors")
    assert specdiag.audit(tmp_path, device="cpu").verdict == "pass"


def test_adapters_without_tensors_are_empty(tmp_path):
    empty = {("adapter_empty", None): "no updates at all"}
    assert parts(tmp_path / "a", {}) == empty
    assert parts(tmp_path / "a", {}, base=base(tmp_path / "base")) == empty
    with pytest.raises(specdiag.SourceError, match="holds no tensors"):
        specdiag.analyze(tmp_path / "a")


def test_updates_that_are_not_understood_are_not_called_empty(tmp_path):
    tensors = lora("model.layers.0.mlp.experts", 64, 48)
    audit = specdiag.audit(write(tmp_path, tensors, LORA | {"target_parameters": ["experts.up_proj"]}), device="cpu")
    assert {f.check for f in audit.findings} == {"unread"}


def test_tokens_alone_are_an_adapter(tmp_path):
    rows = {"base_model.model.model.embed_tokens.trainable_tokens_delta": random(2, 48, seed=7)}
    settings = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 7], "target_modules": ["embed_tokens"]}
    assert parts(tmp_path / "a", rows, settings) == {}
    assert parts(tmp_path / "b", {}, settings) == {
        ("adapter_empty", None): "no updates at all", ("adapter_lost", "token_indices"): "not there",
    }  # fmt: skip


def test_tables_that_are_adapted_together(tmp_path):
    """PEFT writes the same factors twice for tied tables, and target_modules names the first alone."""
    factors = lora("lm_head", 90, 48)
    a, b = (factors[f"base_model.model.lm_head.lora_{x}.weight"] for x in "AB")
    table = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = factors | {f"{table}A": b.T.copy(), f"{table}B": a.T.copy()}
    settings = LORA | {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    audit = specdiag.audit(write(tmp_path, tensors, settings), device="cpu")
    assert not [f for f in audit.findings if f.severity != "info"]


def test_values_that_are_not_finite_leave_no_dead_rows(tmp_path):
    tensors = whole()
    tensors[f"{FIRST}lora_B.weight"][3, 2] = np.nan
    tensors[f"base_model.model.{MODULES[1]}.lora_B.weight"][:, -1] = 0
    audit = specdiag.audit(write(tmp_path, tensors, SETTINGS), device="cpu")
    assert {(f.check, f.module) for f in audit.findings if f.check in ("nonfinite", "dead_rows", "dead_cols")} == {
        ("nonfinite", f"{MODULES[0]}.weight")
    }


def test_layers_that_are_repeated_are_named(tmp_path):
    settings = SETTINGS | {"layer_replication": [[0, 4], [2, 6]]}
    folder = write(tmp_path / "a", whole(), settings)
    with pytest.raises(specdiag.SourceError, match="layer_replication"):
        specdiag.audit(folder, base=base(tmp_path / "base"), device="cpu")
    assert json.loads((folder / "adapter_config.json").read_text())["layer_replication"]


def test_magnitudes_that_are_lost_are_not_left_out_in_silence(tmp_path):
    folder = write(tmp_path / "a", whole(), SETTINGS | {"use_dora": True})
    with pytest.raises(specdiag.SourceError, match="lacks DoRA's magnitudes of model"):
        specdiag.analyze(folder, base=base(tmp_path / "base"), device="cpu")
