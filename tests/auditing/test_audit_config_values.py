"""Numbers of config.json that make NaN without an error, and every default of transformers, which makes none."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import cast

import pytest
from audited_models import CONFIG, llama, save

import specdiag
from specdiag.auditing.config_values import limits, values
from specdiag.auditing.subject import Subject


def seen(config: dict) -> list[tuple[str, str]]:
    subject = cast("Subject", SimpleNamespace(config=config))
    return [(o.check, str(o.value)) for o in values(subject)]


@pytest.mark.parametrize(
    ("config", "check", "value"),
    [
        ({"rms_norm_eps": float("nan")}, "config_value", "rms_norm_eps is nan"),
        ({"rms_norm_eps": -1e-6}, "config_value", "rms_norm_eps is -1e-06, expected from 0 to 1"),
        ({"layer_norm_epsilon": 10}, "config_value", "layer_norm_epsilon is 10, expected from 0 to 1"),
        ({"text_config": {"layer_norm_eps": 0}}, "config_doubt", "text_config.layer_norm_eps is 0, expected above 0"),
        ({"rope_theta": 0.0}, "config_value", "rope_theta is 0, expected above 0"),
        ({"rope_parameters": {"rope_theta": -1e4}}, "config_value", "rope_parameters.rope_theta is -10000, expected above 0"),
        ({"rope_scaling": {"factor": 0}}, "config_value", "rope_scaling.factor is 0, expected above 0"),
        ({"rope_parameters": {"full_attention": {"factor": -8}}}, "config_value",
         "rope_parameters.full_attention.factor is -8, expected above 0"),
        ({"rope_scaling": {"long_factor": [1.0, 0.0]}}, "config_value", "rope_scaling.long_factor is 0, expected above 0"),
        ({"logit_scale": {"__float__": "NaN"}}, "config_value", "logit_scale is nan"),
        ({"a": [{"b": float("inf")}]}, "config_value", "a.b is inf"),
        ({"logits_scaling": 0.0}, "config_value", "logits_scaling is 0, expected above 0"),
        ({"final_logit_softcapping": 0}, "config_value", "final_logit_softcapping is 0, expected above 0"),
        ({"logit_scale": 0.0}, "config_value", "logit_scale is 0, expected above 0"),
        ({"embedding_multiplier": -1}, "config_value", "embedding_multiplier is -1, expected above 0"),
        ({"attention_dropout": 1.5}, "config_doubt", "attention_dropout is 1.5, expected from 0 to 1"),
        ({"scale": 10**400}, "config_value", "scale is inf"),
    ],
)  # fmt: skip
def test_numbers_beyond_their_limits(config, check, value):
    assert seen(config) == [(check, value)]


@pytest.mark.parametrize(
    "config",
    [
        {"time_step_limit": [0.0, float("inf")]}, {"initializer_range": float("nan")}, {"factor": -1},
        {"eps": 0.0}, {"rms_norm_eps": 1.0}, {"rms_norm_eps": None}, {"attention_dropout": 1}, {"rope_theta": "10000"},
        {"use_eps": True}, {"logit_scale_init_value": float("inf")}, {"num_experts_per_tok": 0},
        {"moe_router_logit_softcapping": 0.0},
    ],
)  # fmt: skip
def test_what_models_run_with_is_let_through(config):
    assert seen(config) == []


def test_no_default_of_transformers_is_beyond_a_limit():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    found, n = {}, 0
    for kind in CONFIG_MAPPING:
        try:
            config = json.loads(CONFIG_MAPPING[kind]().to_json_string())
        except Exception:  # noqa: BLE001 - a type without a default
            continue
        n += 1
        if alarms := seen(config):
            found[kind] = alarms
    assert n > 300
    assert found == {}


def test_an_eps_of_zero_is_a_doubt():
    assert seen({"rms_norm_eps": 0.0}) == [("config_doubt", "rms_norm_eps is 0, expected above 0")]


def test_every_limit_has_its_reason():
    assert all(limit.origin for limit in limits())


def test_an_eps_of_nan_fails_the_audit(tmp_path):
    audit = specdiag.audit(save(tmp_path / "m", llama(), CONFIG | {"rms_norm_eps": float("nan")}), device="cpu")
    assert ("config_value", "rms_norm_eps is nan") in {(f.check, f.value) for f in audit.findings}
    assert audit.verdict == "fail"
