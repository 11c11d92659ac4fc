"""A config.json of which transformers makes no model: a finding in its words, and where it is no fault of the file."""

from __future__ import annotations

import pytest
from audited_models import CONFIG, HIDDEN, WIDTH, found, llama, save
from huggingface_hub.errors import StrictDataclassError

import specdiag
from specdiag.auditing.reference_config import checked_copy, names_elsewhere, refusal, stated_type
from specdiag.auditing.reference_process import building, confinement, loading
from specdiag.auditing.reference_process.failures import NoModelError, RefusedError

WHOLE = CONFIG | {
    "intermediate_size": HIDDEN, "num_key_value_heads": 4, "head_dim": WIDTH // 4, "rope_scaling": None,
}  # fmt: skip
SHAPES = {"model.layers.9.mlp.up_proj.weight": (HIDDEN, WIDTH), "model.embed_tokens.weight": (200, WIDTH)}

ERRORS = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, AssertionError,
           StrictDataclassError)  # fmt: skip


def built(config: dict) -> object:
    """Build a model as the process does."""
    assert refusal(config, SHAPES) is None
    return building.build(checked_copy(config), stated_type(config), whole=not names_elsewhere(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64.0}, "'hidden_size' expected int, got float"),
        ({"num_hidden_layers": "2"}, "'num_hidden_layers' expected int, got str"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"intermediate_size": -96}, "negative dimension"),
        ({"hidden_act": "evil"}, "KeyError: 'evil'"),
        ({"model_type": "Llama"}, "no model_type 'Llama'; it is 'llama'"),
        ({"model_type": None}, "config.json has no model_type"),
        ({"model_type": ["llama"]}, "model_type of config.json is ['llama'], which is no name"),
        ({"model_type": 5, "architectures": None}, "model_type of config.json is 5, which is no name"),
        ({"rope_parameters": {"rope_type": "evil", "rope_theta": 1e4}}, "KeyError: 'evil'"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "Missing required keys"),
        ({"layer_types": ["evil"] * 10}, "layer_types"),
        ({"pad_token_id": 500}, "Padding_idx"),
        ({"id2label": ["a"]}, "'list' object has no attribute 'items'"),
        ({"id2label": {"first": "a/b"}}, "invalid literal for int"),
        ({"dtype": "evil"}, "torch has no dtype 'evil'"),
        ({"torch_dtype": "torch.float16"}, "torch has no dtype 'torch.float16'"),
        ({"dtype": "nn"}, "torch has no dtype 'nn'"),
        ({"dtype": 5}, "torch has no dtype 5"),
        ({"dtype": "int8"}, "no floating-point type"),
        ({"dtype": "float8_e4m3fn"}, "TypeError"),
    ],
)
def test_transformers_and_the_child_refuse_the_same(tmp_path, monkeypatch, change, said):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        RefusedError,
        match=r"^transformers \S+ (refuses config.json|has no model_type)|^config.json has no|^model_type of config",
    ) as refused:
        built(WHOLE | change)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    save(tmp_path / "model", llama(), WHOLE | change)
    with pytest.raises(ERRORS):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "evil"},
        {"architectures": ["Evil"]},
        {"hidden_act": "evil", "transformers_version": "99.0"},
        {"hidden_act": "evil", "encoder": "org/name"},
        {"hidden_act": "evil", "architectures": None},
        {"hidden_act": "evil", "architectures": []},
    ],
)
def test_what_may_be_no_fault_of_the_file_is_not_one(change):
    with pytest.raises(NoModelError) as error:
        built(WHOLE | change)
    assert not isinstance(error.value, RefusedError)


def test_a_failure_after_something_was_kept_from_it_is_not_one(monkeypatch):
    monkeypatch.setattr(confinement, "attempts", ["socket.connect"])
    with pytest.raises(NoModelError) as error:
        built(WHOLE | {"hidden_act": "evil"})
    assert not isinstance(error.value, RefusedError)


@pytest.mark.parametrize(
    "change",
    [{}, {"dtype": "bfloat16"}, {"torch_dtype": "float16"}, {"dtype": None}, {"dtype": {"": "float32"}},
     {"id2label": {"0": "a/b"}}, {"dtype": "int8", "quantization_config": {"quant_method": "gptq"}}],
)  # fmt: skip
def test_what_transformers_takes_is_built(change):
    assert built(WHOLE | change)


@pytest.mark.usefixtures("with_transformers")
def test_a_refused_configuration_fails_in_the_words_of_transformers(tmp_path):
    audit = specdiag.audit(save(tmp_path / "model", llama(), WHOLE | {"hidden_size": 64.0}), device="cpu")
    assert ("config_refused", None) in found(audit)
    assert audit.verdict == "fail"
    (finding,) = (f for f in audit.findings if f.check == "config_refused")
    assert "'hidden_size' expected int, got float (value: 64.0)" in str(finding.value)
    assert "config_refused" in audit.coverage.checks


def test_architectures_of_another_model_type_give_way_to_the_model_type():
    """Auto classes go by the model type: nothing of such a file would be loaded."""
    model = built(WHOLE | {"architectures": ["GPT2LMHeadModel"]})
    assert type(model).__name__ == "LlamaModel"
    found = loading.compare(model, {"transformer.wte.weight": [200, WIDTH]})
    assert len(found["missing"]) == len(model.state_dict())


@pytest.mark.parametrize("number", [0, -1])
def test_a_configuration_without_layers_contradicts_the_files(tmp_path, number):
    audit = specdiag.audit(save(tmp_path / "model", llama(), WHOLE | {"num_hidden_layers": number}), device="cpu")
    assert found(audit) == {("layers", None)}
    assert (audit.findings[0].value, audit.findings[0].threshold) == (10, number)
