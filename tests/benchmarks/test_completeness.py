"""Completeness on small models of several architectures, with transformers' own model and by shapes alone."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from command import benchmark

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "completeness.json").read_text())
sys.path.append(str(ROOT / "benchmarks"))
completeness, faults = (importlib.import_module(name) for name in ("completeness", "completeness_faults"))
KINDS = ("llama", "qwen3_moe", "mixtral", "gpt2", "bert", "t5", "gemma2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_model_has_no_findings_and_each_fault_has_one(kind):
    model = faults.small(kind)
    shapes, config = completeness.in_file(model), completeness.configuration(model)
    assert completeness.alarms(shapes, config) == {}
    (found,) = completeness.planted([kind]).values()
    assert len(found) >= 11
    assert [fault for fault, by in found.items() if not by["model"]] == []
    assert found == RESULTS["planted"][kind]


def test_no_complete_model_of_the_zoo_fails():
    assert RESULTS["false_alarms"] == {"model": {}, "shapes": {}}
    assert RESULTS["built"] >= 597
    assert len(RESULTS["not_compared"]) <= 10
    assert RESULTS["compared"] + len(RESULTS["not_compared"]) == RESULTS["built"]


def test_the_page_shows_what_was_measured():
    done = benchmark("completeness.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr
