"""Completeness on small models of several architectures, with transformers' own model and by shapes alone."""

import importlib
import json
import math
import struct
import sys
import time
from pathlib import Path

import pytest
from audited_models import CONFIG
from command import benchmark
from models import llama_shapes

from specdiag.auditing.reference import Reference
from specdiag.checkpoint.reader import open_checkpoint

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


@pytest.mark.parametrize("name", ["completeness.py", "audit_faults.py", "forward_pass.py"])
def test_the_page_shows_what_was_measured(name):
    done = benchmark(name, "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_headers_of_7b_take_less_than_a_second(tmp_path):
    """A file of 13 GB that holds no values: 0.1 s here, opening included."""
    shapes = llama_shapes(32, 4096, 11008, whole=True)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)
    config = CONFIG | {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008}
    (tmp_path / "config.json").write_text(json.dumps(config))
    completeness.audited(completeness.report_of(llama_shapes(), CONFIG), CONFIG, Reference(reason="left out"))
    start = time.process_time()
    matrices = open_checkpoint(tmp_path).matrices
    found = {matrix.name: tuple(matrix.shape) for matrix in matrices}
    assert completeness.audited(completeness.report_of(found, config), config, Reference(reason="left out")) == []
    assert time.process_time() - start < 1
    assert len(found) == 32 * 7 + 2
