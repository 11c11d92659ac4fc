"""Adapters that change nothing, and those that lost what was trained beside their factors."""

from __future__ import annotations

import numpy as np
import pytest
from adapter_files import LORA, QUERY, lora, random, write
from audited_models import found

import specdiag

HEAD = {"base_model.model.lm_head.weight": random(96, 64)}
FACTORS = lora(QUERY, 96, 64) | lora(QUERY.replace("q_proj", "v_proj"), 96, 64)


def zeroed(side: str) -> dict[str, np.ndarray]:
    return {key: value * (0 if side in key else 1) for key, value in FACTORS.items()}


def checks(audit) -> set[tuple[str, str | None]]:
    return {pair for pair in found(audit) if pair[0] in ("adapter_empty", "adapter_lost", "adapter_one_sided", "zero")}


@pytest.mark.parametrize(
    ("tensors", "settings", "value"),
    [
        (zeroed("lora_B"), {}, "all 2 updates are zero"),
        (zeroed("lora_A"), {}, "all 2 updates are zero"),
        (FACTORS, {"lora_alpha": 0}, "all 2 updates are zero"),
        (zeroed("lora_B") | HEAD, {"modules_to_save": ["lm_head"]}, "all 2 updates are zero"),
        (HEAD, {"modules_to_save": ["lm_head"]}, "no updates at all"),
    ],
    ids=["B", "A", "scale", "with a head", "head alone"],
)
def test_an_adapter_that_changes_nothing(tmp_path, tensors, settings, value):
    audit = specdiag.audit(write(tmp_path, tensors, LORA | settings), device="cpu")
    assert checks(audit) == {("adapter_empty", None)}
    (finding,) = [f for f in audit.findings if f.check == "adapter_empty"]
    assert (finding.severity, finding.value) == ("fail", value)


def test_one_update_of_two_is_zero(tmp_path):
    tensors = dict(FACTORS)
    tensors[f"base_model.model.{QUERY}.lora_B.weight"] = np.zeros((96, 8), "f4")
    audit = specdiag.audit(write(tmp_path, tensors, LORA), device="cpu")
    assert checks(audit) == {("adapter_one_sided", f"{QUERY}.weight")}


@pytest.mark.parametrize(
    ("more", "settings", "lost"),
    [
        ({}, {"modules_to_save": ["lm_head"]}, {"lm_head"}),
        (HEAD, {"modules_to_save": ["lm_head"]}, set()),
        (HEAD, {"modules_to_save": ["lm_head", "embed_tokens"]}, {"embed_tokens"}),
        ({"base_model.model.model.norm.weight": random(64)}, {"modules_to_save": ["norm"]}, set()),
        ({"base_model.model.score.weight": random(4, 64)}, {"modules_to_save": ["classifier", "score"]}, set()),
        ({}, {"modules_to_save": ["classifier", "score"]}, {"classifier", "score"}),
        ({}, {"trainable_token_indices": [3, 5]}, {"trainable_token_indices"}),
        ({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": random(2, 64)},
         {"trainable_token_indices": [3, 5]}, set()),
        ({}, {"modules_to_save": "lm_head", "trainable_token_indices": None}, set()),
    ],
)  # fmt: skip
def test_weights_beside_the_factors(tmp_path, more, settings, lost):
    audit = specdiag.audit(write(tmp_path, FACTORS | more, LORA | settings), device="cpu")
    assert checks(audit) == {("adapter_lost", name) for name in lost}


def test_where_there_is_no_adapter(tmp_path):
    state = {"model.layers.0.self_attn.q_proj.weight": random(64, 64)}
    for source in (state, specdiag.analyze(write(tmp_path, FACTORS, LORA), device="cpu")):
        audit = specdiag.audit(source)
        assert audit.coverage.not_checked["adapter_lost"] == "the source is no adapter, or a report of one"
    chosen = specdiag.audit(write(tmp_path, zeroed("lora_B"), LORA), include="*q_proj*", device="cpu")
    assert ("zero", f"{QUERY}.weight") in checks(chosen)


def test_a_factor_without_its_other_half(tmp_path):
    tensors = dict(FACTORS)
    alone = f"base_model.model.{QUERY}.lora_A.weight"
    del tensors[alone.replace("lora_A", "lora_B")]
    audit = specdiag.audit(write(tmp_path, tensors, LORA), device="cpu")
    assert (audit.verdict, checks(audit)) == ("fail", {("adapter_lost", alone)})
