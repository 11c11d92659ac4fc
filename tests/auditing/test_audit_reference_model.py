"""Transformers' own model beside an audit: what it finds, that nothing of a hostile folder runs, and what it costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from audited_models import CONFIG, HIDDEN, LAYERS, WIDTH, found, llama, name, save
from command import invoke
from models import EMBED, HEAD, VOCABULARY

import specdiag
from specdiag.auditing import reference_model
from specdiag.auditing.reference import CHECKS
from specdiag.auditing.reference_config import checked_copy, refusal
from specdiag.auditing.reference_process import __main__ as process
from specdiag.auditing.reference_process import building, failures, loading
from specdiag.auditing.wording import headline

PROCESS = process.__file__
WHOLE = CONFIG | {
    "intermediate_size": HIDDEN, "num_key_value_heads": 4, "head_dim": WIDTH // 4, "rope_scaling": None,
}  # fmt: skip
SHAPES = {EMBED: (VOCABULARY, WIDTH), name(LAYERS - 1, "mlp.up_proj"): (HIDDEN, WIDTH)}
WATCH = """
import sys

def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system")):
        note(event, arguments)
    elif event == "open" and (HOSTILE in str(arguments[0]) or "modeling_llama" in str(arguments[0])):
        note(event, arguments)

def note(event, arguments):
    if "socket.__new__" != event and "socket.gethostname" != event:
        with open(LOG, "a") as log:
            log.write(f"{event} {arguments[0]}\\n")

if any("reference_process" in argument for argument in sys.orig_argv):
    sys.addaudithook(watch)
"""


def complete(layers: int = LAYERS) -> dict[str, np.ndarray]:
    """`llama` with the second norm of each layer."""
    gains = {f"model.layers.{i}.post_attention_layernorm.weight": np.ones(WIDTH, "f4") for i in range(layers)}
    return llama(layers=layers) | gains


@pytest.mark.usefixtures("with_transformers")
def test_a_complete_model_passes_and_faults_that_no_rule_sees_are_found(tmp_path):
    state, config = complete(2), WHOLE | {"num_hidden_layers": 2}
    audit = specdiag.audit(save(tmp_path / "whole", state, config), device="cpu")
    assert not audit.findings
    assert {"missing_tensor", "other_shape", "unused_tensor", "missing_optional"} <= set(audit.coverage.checks)
    gain, down = "model.layers.1.input_layernorm.weight", name(1, "mlp.down_proj")
    del state[gain]
    state[down] = np.ascontiguousarray(state[down].T)
    state["model.surplus.weight"] = np.ones(3, "f4")
    config["attention_bias"] = True
    audit = specdiag.audit(save(tmp_path / "model", state, config), device="cpu")
    biases = {f"model.layers.{i}.self_attn.{p}_proj.bias" for i in range(2) for p in "qkvo"}
    expected = {("missing_tensor", gain), ("other_shape", down), ("unused_tensor", "model.surplus.weight")}
    assert found(audit) == expected | {("missing_optional", bias) for bias in biases}
    (shape,) = (f.value for f in audit.findings if f.check == "other_shape")
    assert shape == f"{HIDDEN}x{WIDTH}, not {WIDTH}x{HIDDEN}"


@pytest.mark.usefixtures("with_transformers")
def test_a_tensor_that_a_layer_of_the_model_drops_is_a_warning(tmp_path):
    state, config = complete(2), WHOLE | {"num_hidden_layers": 2}
    norm = "model.layers.1.self_attn.q_norm.weight"
    for key in (norm, "model.layers.1.self_attn.rotary_emb.inv_freq", "model.layers.2.extra.weight"):
        state[key] = np.ones(16, "f4")
    audit = specdiag.audit(save(tmp_path / "model", state, config), device="cpu")
    assert found(audit) == {("dropped_tensor", norm), ("unused_tensor", "model.layers.2.extra.weight")}


@pytest.mark.usefixtures("with_transformers")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"max_new_tokens": 4}', None),
        ("{", None),
        ("[1]", "not a mapping"),
        ('{"max_new_tokens": -4}', "must be greater than 0"),
    ],
)
def test_a_generation_config_that_stops_the_loader_is_found(tmp_path, text, said):
    path = save(tmp_path / "model", complete(2), WHOLE | {"num_hidden_layers": 2})
    (path / "generation_config.json").write_text(text)
    values = [str(f.value) for f in specdiag.audit(path, device="cpu").findings]
    assert len(values) == (said is not None)
    assert all("generation_config.json (" in value and str(said) in value for value in values)


def test_a_persistent_buffer_is_compared():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        num_hidden_layers=1, first_k_dense_replace=0, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        vocab_size=64, n_routed_experts=4, n_group=1, topk_group=1, num_attention_heads=2, num_key_value_heads=2,
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    model = building.build(config.to_dict() | {"architectures": [DeepseekV3ForCausalLM.__name__]})
    shapes = {name: [*tensor.shape] for name, tensor in model.state_dict().items()}
    bias = next(name for name in shapes if name.endswith("e_score_correction_bias"))
    del shapes[bias]
    assert loading.compare(model, shapes)["missing"] == {bias: [4]}


@pytest.mark.usefixtures("with_transformers")
def test_a_hostile_folder_imports_fetches_and_runs_nothing(tmp_path, monkeypatch):
    folder, log, tools = tmp_path / "hostile", tmp_path / "log", tmp_path / "tools"
    config = WHOLE | {
        "num_hidden_layers": 2, "_name_or_path": str(folder), "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel", "_attn_implementation_internal": "evil/kernel",
        "experts_implementation": "evil/kernel", "use_kernels": True, "kernel_config": {"RMSNorm": "evil/kernel:RMSNorm"},
        "quantization_config": {"quant_method": "evil/method", "modules_to_not_convert": ["evil/module"]},
        "dtype": "evil", "tokenizer_class": "evil/tokenizer", "transformers_weights": "evil.safetensors",
        "auto_map": {"AutoModelForCausalLM": "evil/repo--modeling_evil.Evil"}, "trust_remote_code": True,
        "custom_pipelines": {"x": {"impl": "evil.Pipeline"}},
        "vision_config": {"backbone_config": {"_name_or_path": "evil/backbone", "model_type": "evil"}},
        "text_encoder": "https://evil.example/weights",
    }  # fmt: skip
    save(folder, complete(2), config)
    for module in ("torch", "transformers", "modeling_llama", "configuration_llama", "sitecustomize", "json", "evil"):
        (folder / f"{module}.py").write_text(f"open({str(log)!r}, 'a').write('ran {module}')")
    tools.mkdir()
    (tools / "sitecustomize.py").write_text(f"LOG, HOSTILE = {str(log)!r}, {str(folder)!r}\n{WATCH}")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(tools))
    audit = specdiag.audit(folder, device="cpu")
    assert "missing_tensor" in audit.coverage.checks
    assert "unused_tensor" in audit.coverage.checks, audit.coverage.not_checked
    seen = log.read_text().splitlines()
    assert seen, "the hook was there"
    assert [
        line for line in seen if not re.fullmatch(r"open \S*/transformers/models/llama\w*/\S*modeling_llama\S*", line)
    ] == []


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "evil/backbone"},
        {"vision_config": {"use_timm_backbone": True}},
    ],
)
def test_backbones_are_refused_without_a_process(tmp_path, monkeypatch, change):
    monkeypatch.setattr(reference_model, "find_spec", lambda _: True)
    monkeypatch.setattr(reference_model.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    audit = specdiag.audit(save(tmp_path / "model", llama(), WHOLE | change), device="cpu")
    assert "config.json has" in audit.coverage.not_checked["unused_tensor"]


@pytest.mark.usefixtures("with_transformers")
def test_a_repository_with_code_is_judged_as_loaders_without_trust_build_it(tmp_path):
    """As `AutoModel.from_pretrained(trust_remote_code=False)`: transformers' own class where it has the type."""
    state, config = complete(2), WHOLE | {"num_hidden_layers": 2, "auto_map": {"AutoModelForCausalLM": "a.Evil"}}
    audit = specdiag.audit(save(tmp_path / "whole", state, config), device="cpu")
    assert not audit.findings
    assert {"missing_optional", "does_not_run"} <= set(audit.coverage.checks)
    assert audit.coverage.own_code
    assert headline(audit).endswith("no findings, without the repository's own code (auto_map)")
    del state["model.layers.1.input_layernorm.weight"]
    audit = specdiag.audit(save(tmp_path / "less", state, config), device="cpu")
    assert ("missing_tensor", "model.layers.1.input_layernorm.weight") in found(audit)


def test_a_type_that_only_code_of_the_repository_knows_is_not_built():
    with pytest.raises(failures.NoModelError, match="has auto_map: the model is code of the repository") as error:
        building.build({"model_type": "evil"}, own_code=True)
    assert not isinstance(error.value, failures.RefusedError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": None, "architectures": None}, "names no model_type"),
        ({"id2label": {str(i): "a" for i in range(10**5 + 1)}}, "id2label of config.json has more than 100000 entries"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers of config.json is 1000000000, and the names of the files count to 10"),
        ({"text_config": {"vocab_size": 1 << 40}}, "text_config.vocab_size of config.json is 1099511627776"),
        ({"num_local_experts": 10**5}, "num_local_experts of config.json is 100000, and no tensor of the files has a"),
        ({"max_position_embeddings": 10**9}, "is 1000000000, more than any input has"),
        ({"depths": [2, 10**7]}, "depths of config.json is 10000000"),
        ({"a": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}, "nested more than 16 deep"),
    ],
)  # fmt: skip
def test_sizes_that_no_shape_bears_out_are_refused(change, said):
    assert said in str(refusal(WHOLE | change, SHAPES))
    assert refusal(WHOLE, SHAPES) is None


def test_the_copy_names_nothing_to_fetch_at_any_depth():
    config = {
        "hidden_size": 4, "id2label": {"0": "../x", "1": "y"}, "label2id": {"x": 0}, "limit": {"__float__": "Infinity"},
        "parts": [{"backbone": "a", "kept": [1, "org/name"], "use_kernels": True}, "C:\\weights"], "file": "/etc/passwd",
        "inner": {"name_or_path": "a", "dtype": "float32", "quantization_config": {}, "hidden_act": "silu"},
    }  # fmt: skip
    assert checked_copy(config) == {
        "hidden_size": 4, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "limit": float("inf"),
        "parts": [{"kept": [1]}], "inner": {"hidden_act": "silu"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "attempt", ["socket.create_connection(('localhost', 9))", "subprocess.run(['true'])", "os.fork()"]
)
def test_the_process_can_neither_connect_nor_start_another(attempt):
    code = (
        "import os, socket, subprocess\n"
        "from specdiag.auditing.reference_process.confinement import lock\n"
        f"lock()\n{attempt}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "NoModelError: building it would need" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "evil"}, "has no model_type 'evil'"),
        ({"model_type": None, "architectures": ["Evil"]}, "names no model_type"),
        ({"architectures": ["EvilForCausalLM"]}, "has no EvilForCausalLM for this model_type"),
        ({"architectures": ["os"]}, "has no os for this model_type"),
        ({"hidden_act": "evil"}, r"refuses config.json \(KeyError: 'evil'\)"),
    ],
)
def test_a_model_that_cannot_be_built_has_a_reason(change, said):
    with pytest.raises(failures.NoModelError, match=said):
        building.build(WHOLE | change)


@pytest.mark.parametrize(
    ("kind", "named", "built"),
    [
        ("sam2_video", "Sam2Model", "Sam2Model"),
        ("edgetam_video", "EdgeTamModel", "EdgeTamModel"),
        ("sam3_tracker_video", "Sam3TrackerModel", "Sam3TrackerModel"),
        ("sam2_video", "LlamaForCausalLM", "Sam2VideoModel"),
    ],
)
def test_a_class_of_another_type_is_built_where_an_auto_class_has_it_for_this_one(kind, named, built):
    """AutoModelForMaskGeneration makes Sam2Model of a sam2_video, and saves both names."""
    assert type(building.build({"model_type": kind, "architectures": [named]})).__name__ == built


@pytest.mark.usefixtures("with_transformers")
@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [("WAIT", 0, "within 0 s"), ("SECONDS", 1, "ended with"), ("MEMORY", 1 << 20, "transformers")],
)
def test_a_process_that_takes_too_much_is_not_checked_and_no_failure(tmp_path, monkeypatch, limit, value, said):
    monkeypatch.setattr(reference_model, limit, value)
    audit = specdiag.audit(save(tmp_path / "model", complete(), WHOLE), device="cpu")
    assert audit.verdict == "pass"
    assert said in audit.coverage.not_checked["unused_tensor"]
    assert "missing_tensor" in audit.coverage.checks, "the rules on shapes take its place"


@pytest.mark.usefixtures("with_transformers")
def test_no_process_for_reports_selections_and_folders_without_config(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_model.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    path = save(tmp_path / "model", llama(2), WHOLE)
    specdiag.audit(specdiag.analyze(path, device="cpu"))
    specdiag.audit(path, include="*q_proj*", device="cpu")
    off = specdiag.audit(path, reference_model=False, device="cpu")
    assert "switched off" in off.coverage.not_checked["unused_tensor"]
    names = {check: {"enabled": False} for check in CHECKS}
    specdiag.audit(path, thresholds=names, device="cpu")
    specdiag.audit(llama(2), device="cpu")
    assert invoke("audit", path, "--no-reference-model", "--device", "cpu").exit_code == 0
    (path / "config.json").unlink()
    specdiag.audit(path, device="cpu")


def test_the_process_answers_in_json_alone(tmp_path):
    """As a user of the file would start it: an unknown type, answered before transformers builds anything."""
    request = {
        "config": {"model_type": "evil"}, "dtype": None, "whole": True, "own_code": False, "tensors": {},
        "memory": 4 << 30, "seconds": 60,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", PROCESS],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "has no model_type 'evil'" in json.loads(done.stdout)["reason"]
    assert HEAD in complete()
