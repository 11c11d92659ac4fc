"""An adapter of another rank than its settings state: a finding of audit in every format, and refused elsewhere."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from adapter_files import LORA, QUERY, lora, random, write
from command import invoke
from models import write_checkpoint
from test_audit_sarif import run_of

import specdiag

SAID = "factors of rank 4, and adapter_config.json says 8"
VALUE = QUERY.replace("q_proj", "v_proj")


@pytest.fixture
def contradicting(tmp_path):
    """Queries of another rank than stated, and values of the stated one."""
    tensors = lora(QUERY, 96, 64, r=4) | lora(VALUE, 96, 64, r=8)
    return write(tmp_path, tensors, LORA | {"target_modules": ["q_proj", "v_proj"]})


def failures(audit):
    return [(f.check, f.module, f.value) for f in audit.findings if f.severity == "fail"]


def test_it_is_a_finding_with_a_base_and_without(contradicting, tmp_path):
    base = write_checkpoint(tmp_path / "base", {f"{m}.weight": random(96, 64) for m in (QUERY, VALUE)})
    for given in ({}, {"base": base}):
        audit = specdiag.audit(contradicting, device="cpu", reference_model=False, **given)
        assert failures(audit) == [("adapter_rank", QUERY, SAID)]
    with pytest.raises(specdiag.SourceError, match="contradicts itself"):
        specdiag.analyze(contradicting)
    other = write_checkpoint(tmp_path / "other", {f"{QUERY}.weight": random(90, 64)})
    (tmp_path / "whole").mkdir()
    whole = write(tmp_path / "whole", lora(QUERY, 96, 64))
    with pytest.raises(specdiag.SourceError, match="it was made for another model"):
        specdiag.audit(whole, base=other, device="cpu")


def test_an_adapter_of_nothing_else_is_not_called_empty(tmp_path):
    audit = specdiag.audit(write(tmp_path, lora(QUERY, 96, 64, r=4), LORA), device="cpu", reference_model=False)
    assert failures(audit) == [("adapter_rank", QUERY, SAID)]


def test_the_twin_of_the_stated_rank_passes(tmp_path):
    settings = LORA | {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}}
    audit = specdiag.audit(write(tmp_path, lora(QUERY, 96, 64, r=4), settings), device="cpu", reference_model=False)
    assert failures(audit) == []


def test_sarif_and_junit_hold_it(contradicting, monkeypatch):
    (contradicting / ".git").mkdir()
    monkeypatch.chdir(contradicting)
    done = invoke("audit", ".", "-f", "sarif")
    assert done.exit_code == 1
    (result,) = (r for r in run_of(done.stdout)["results"] if r["ruleId"] == "adapter_rank")
    assert result["level"] == "error"
    assert SAID in result["message"]["text"]
    (place,) = result["locations"]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "adapter_model.safetensors"
    done = invoke("audit", ".", "-f", "junit")
    assert done.exit_code == 1
    (case,) = (c for c in ElementTree.fromstring(done.stdout).iter("testcase") if c.get("name") == "adapter_rank")
    (failure,) = case
    assert (failure.tag, SAID in (failure.text or "")) == ("failure", True)
