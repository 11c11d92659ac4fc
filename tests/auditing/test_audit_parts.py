"""Shards, selections and unfinished reports: what a part of a checkpoint can and cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from audited_models import CONFIG, found, llama, name, row, save
from models import EMBED, PLACES, write_checkpoint
from safetensors.numpy import save_file
from saved_reports import made

import specdiag
from specdiag.auditing.wording import headline
from specdiag.errors import SourceError


def shard(folder: Path, state: dict[str, np.ndarray], total: int = 2) -> tuple[Path, dict[str, str]]:
    """Saved in shards; the index is still to be written."""
    places = {key: f"model-{i % total + 1:05}-of-{total:05}.safetensors" for i, key in enumerate(state)}
    for file in set(places.values()):
        write_checkpoint(folder, {key: state[key] for key in state if places[key] == file}, CONFIG, file)
    return folder, places


def test_shards_and_tensors_that_nobody_lists(tmp_path):
    state = llama(0)
    folder, places = shard(tmp_path / "model", state)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert not specdiag.audit(folder, device="cpu").findings
    forgotten = name(4, PLACES[3])
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {key: file for key, file in places.items() if key != forgotten}})
    )
    save_file({"old.weight": state[EMBED]}, folder / "model-00003-of-00003.safetensors")
    save_file({"other.weight": state[EMBED]}, folder / "consolidated.safetensors")
    audit = specdiag.audit(folder, device="cpu")
    assert found(audit) == {("unlisted", forgotten), ("extra_shard", "model-00003-of-00003.safetensors")}
    one = specdiag.audit(folder, file="model-00001-of-00002.safetensors", device="cpu")
    assert {check for check, _ in found(one)} == {"not_audited"}
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
    said = f"no findings, in {audit.coverage.n_matrices} selected matrices: missing tensors were not looked for"
    assert headline(audit) == f"PASS (selection): {folder}: {said}"
    report = specdiag.analyze(folder, exclude="*layers.4*", device="cpu")
    assert headline(specdiag.audit(report)) == headline(audit)
    shard = specdiag.audit(made([row("a", "q", 0)], files=("model-00001-of-00002.safetensors",)))
    assert shard.coverage.not_checked["layer_gap"] == "model-00001-of-00002.safetensors is one shard of 2"
