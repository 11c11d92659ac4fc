"""Indices that list less than the shards, or more than they hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from audited_models import CONFIG, found, llama, name
from models import PLACES, write_checkpoint

import specdiag
from specdiag.errors import SourceError

CHECKS = ("index_part", "ghost", "extra_shard", "unlisted", "index_size", "shard_types")
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00003.safetensors"


def sharded(folder: Path, total: int = 3) -> dict[str, str]:
    """Write shards, and give the map of a right index."""
    state = llama(0)
    places = {key: f"model-{i % total + 1:05}-of-{total:05}.safetensors" for i, key in enumerate(state)}
    for file in set(places.values()):
        write_checkpoint(folder, {key: state[key] for key in state if places[key] == file}, CONFIG, file)
    return places


def write_index(folder: Path, places: dict[str, str]) -> Path:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def without(places: dict[str, str], *files: str) -> dict[str, str]:
    return {key: file for key, file in places.items() if file not in files}


def of_the_index(audit) -> set[tuple[str, str | None]]:
    return {pair for pair in found(audit) if pair[0] in CHECKS}


@pytest.mark.parametrize(
    "lost", [(SECOND,), ("model-00001-of-00003.safetensors", SECOND), (SECOND, "model-00003-of-00003.safetensors")]
)
@pytest.mark.parametrize("deleted", [False, True])
def test_shards_of_the_set_that_are_not_listed(tmp_path, lost, deleted):
    """They lie there, or they were deleted with their entries: the names of the others count them."""
    places = sharded(tmp_path)
    write_index(tmp_path, without(places, *lost))
    if deleted:
        for file in lost:
            (tmp_path / file).unlink()
    audit = specdiag.audit(tmp_path, device="cpu")
    assert of_the_index(audit) == {("index_part", ", ".join(lost))}
    assert audit.verdict == "fail"
    assert "missing_matrix" in audit.coverage.checks  # what the index lists is the model
    report = specdiag.analyze(tmp_path, device="cpu")
    assert of_the_index(specdiag.audit(report)) == {("index_part", ", ".join(lost))}


def test_the_whole_index_and_a_shard_that_was_picked(tmp_path):
    write_index(tmp_path, sharded(tmp_path))
    assert not of_the_index(specdiag.audit(tmp_path, device="cpu"))
    one = specdiag.audit(tmp_path, file=SECOND, device="cpu")
    assert not of_the_index(one)
    assert one.coverage.not_checked["layer_gap"] == f"{SECOND} is one shard of 3"


@pytest.mark.parametrize(
    ("ghosts", "said"),
    [
        (["mtp.fc.weight"], "mtp.fc.weight"),
        (["model.layers.0.self_attn.rotary_emb.inv_freq"], "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ([f"model.layers.{i}.self_attn.q_norm.weight" for i in range(3)],
         "model.layers.0.self_attn.q_norm.weight and 2 more"),
    ],
)  # fmt: skip
def test_tensors_that_are_listed_and_not_there(tmp_path, ghosts, said):
    places = sharded(tmp_path)
    write_index(tmp_path, places | dict.fromkeys(ghosts, SECOND))
    audit = specdiag.audit(tmp_path, device="cpu")
    assert of_the_index(audit) == {("ghost", said)}
    assert audit.coverage.n_tensors == len(places)
    assert any(
        note.endswith("which its shards lack.") for note in specdiag.analyze(tmp_path, device="cpu").provenance.notes
    )


def test_a_tensor_under_the_wrong_shard_is_not_listed_where_it_lies(tmp_path):
    places = sharded(tmp_path)
    moved = name(4, PLACES[3])
    write_index(tmp_path, places | {moved: next(f for f in set(places.values()) if f != places[moved])})
    audit = specdiag.audit(tmp_path, device="cpu")
    assert of_the_index(audit) == {("unlisted", moved)}
    assert audit.coverage.n_tensors == len(places)


def test_a_shard_of_another_version_ends_the_reading(tmp_path):
    places = sharded(tmp_path)
    write_index(tmp_path, {f"other.{key}" if file == SECOND else key: file for key, file in places.items()})
    with pytest.raises(SourceError, match=r"which '.*index.json' lists, and \d+ more: index and shards belong to"):
        specdiag.audit(tmp_path, device="cpu")


def test_an_index_of_a_large_count_names_nine(tmp_path):
    places = sharded(tmp_path, total=1)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model-00001-of-99999999.safetensors")
    write_index(tmp_path, dict.fromkeys(places, "model-00001-of-99999999.safetensors"))
    ((check, names),) = of_the_index(specdiag.audit(tmp_path, device="cpu"))
    assert check == "index_part"
    assert len(names) < 400


def layered(folder: Path, dtypes: dict[str, np.dtype]) -> Path:
    """Write shards of three layers each, with the types that some are cast to."""
    state = llama(0)
    layers = {key: int(match[1]) if (match := re.search(r"layers\.(\d+)", key)) else 0 for key in state}
    places = {key: f"model-{min(layer // 3, 2) + 1:05}-of-00003.safetensors" for key, layer in layers.items()}
    for file in set(places.values()):
        values = {key: state[key] for key in state if places[key] == file}
        write_checkpoint(folder, {key: v.astype(dtypes.get(file, v.dtype)) for key, v in values.items()}, CONFIG, file)
    return write_index(folder, places)


def test_a_shard_of_another_type_comes_from_another_save(tmp_path):
    audit = specdiag.audit(layered(tmp_path, {SECOND: np.dtype("f2")}), device="cpu")
    assert of_the_index(audit) == {("shard_types", SECOND)}
    (told,) = (f for f in audit.findings if f.check == "shard_types")
    assert (told.severity, told.value, told.file) == ("warn", "F16, where 2 shards hold F32", SECOND)
    report = specdiag.analyze(tmp_path, device="cpu")
    assert "audit the checkpoint" in specdiag.audit(report).coverage.not_checked["shard_types"]


def test_types_that_go_by_the_role_are_one_save(tmp_path):
    places = {key: SECOND if ".mlp." in key else "model-00001-of-00003.safetensors" for key in llama(0)}
    state = {key: v.astype("f2") if ".mlp." in key else v for key, v in llama(0).items()}
    for file in set(places.values()):
        write_checkpoint(tmp_path, {key: state[key] for key in state if places[key] == file}, CONFIG, file)
    write_index(tmp_path, places)
    assert "shard_types" not in {check for check, _ in of_the_index(specdiag.audit(tmp_path, device="cpu"))}


@pytest.mark.parametrize(("added", "fires"), [(0, False), (4, True), (0.5, True)])
def test_the_size_that_an_index_states(tmp_path, added, fires):
    places = sharded(tmp_path)
    size = sum(v.nbytes for v in llama(0).values())
    content = {"metadata": {"total_size": size + added}, "weight_map": places}
    (tmp_path / INDEX).write_text(json.dumps(content))
    audit = specdiag.audit(tmp_path, device="cpu")
    assert of_the_index(audit) == ({("index_size", INDEX)} if fires else set())
    assert [f.value for f in audit.findings if f.check == "index_size"] == [
        f"states {size + added} bytes, and its shards hold {size}"
    ][: int(fires)]
