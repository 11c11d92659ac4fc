"""Folders as programs leave them: stale indices, names that say nothing, the hub's cache, steps of runs."""

from __future__ import annotations

import json
from pathlib import Path

import layout_writers
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import specdiag
from specdiag.checkpoint.contents import require_files
from specdiag.checkpoint.files import LocalFiles
from specdiag.checkpoint.folder import Folder
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError
from specdiag.records import Source
from specdiag.trajectories.steps import find_steps

QUERY = "layers.0.self_attn.q_proj.weight"
KEY = "layers.0.self_attn.k_proj.weight"


def write(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ones((4, 4), np.float32) for name in names or (QUERY,)}, path)


def index(tmp_path: Path, weight_map: dict[str, str]) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_several_files_by_a_glob(tmp_path: Path) -> None:
    """As where an index names shards of another version."""
    write(tmp_path / "model-00001-of-00002.safetensors")
    write(tmp_path / "model-00002-of-00002.safetensors", KEY)
    (tmp_path / "model-notes.txt").touch()
    index(tmp_path, {QUERY: "model-00001-of-00004.safetensors"})
    with pytest.raises(
        SourceError, match=r"fetch it again; .* delete model.safetensors.index.json, or .* file='model-\*-"
    ):
        open_checkpoint(tmp_path)
    checkpoint = open_checkpoint(tmp_path, file="model-*.safetensors")
    assert len(checkpoint.matrices) == 2
    assert checkpoint.source.files == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(UsageError, match=r"file=model-\* matches 'model-notes.txt', which is no file of weights"):
        open_checkpoint(tmp_path, file="model-*")
    with pytest.raises(UsageError, match=r"has no file 'x\*'; it has model-00001"):
        open_checkpoint(tmp_path, file="x*")
    write(tmp_path / "sub" / "model-00001-of-00002.safetensors")
    with pytest.raises(UsageError, match="matches files in several folders"):
        open_checkpoint(tmp_path, file="*.safetensors")
    assert len(open_checkpoint(tmp_path, file="sub/*.safetensors").matrices) == 1


def test_shards_that_a_glob_does_not_match(tmp_path: Path) -> None:
    write(tmp_path / "model-00001-of-00003.safetensors")
    write(tmp_path / "model-00003-of-00003.safetensors", KEY)
    checkpoint = open_checkpoint(tmp_path, file="model-*.safetensors")
    assert checkpoint.notes == (
        "Read 2 shards of a larger set, without model-00002-of-00003.safetensors: a part of the model.",
    )
    reasons = specdiag.audit(tmp_path, file="model-*.safetensors").coverage.not_checked
    assert "only some shards of the checkpoint were read" in reasons.values()
    write(tmp_path / "model-00002-of-00003.safetensors", "layers.0.self_attn.v_proj.weight")
    assert open_checkpoint(tmp_path, file="model-*.safetensors").notes == ()


def test_the_newest_step_of_a_run_is_suggested(tmp_path: Path) -> None:
    for step in ("checkpoint-900", "checkpoint-1000", "best"):
        write(tmp_path / step / "model.safetensors")
    with pytest.raises(SourceError, match=r"in its folders .*: read one, such as with file=checkpoint-1000$"):
        open_checkpoint(tmp_path)


def test_the_checkpoints_of_a_project_are_named(tmp_path: Path) -> None:
    for step in range(2):
        write(tmp_path / "checkpoints" / f"checkpoint_{step}" / "model.safetensors")
    with pytest.raises(SourceError, match=r"such as with file=checkpoints/checkpoint_1$"):
        open_checkpoint(tmp_path)


def test_a_report_notes_files_that_were_not_read(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    torch.save({"v_head.summary.weight": torch.ones(3, 3)}, tmp_path / "value_head.bin")
    report = specdiag.analyze(tmp_path, cache=None)
    assert report.provenance.notes == ("Read model.safetensors; weight files that were not read: value_head.bin.",)


def test_moments_of_a_universal_checkpoint_are_no_weights(tmp_path: Path) -> None:
    state = {"layers.0.mlp.up_proj.weight": torch.ones(4, 4)}
    layout_writers.universal(tmp_path, state)
    where = next(tmp_path.rglob("fp32.pt")).parent
    torch.save({"param": torch.zeros(4, 4)}, where / "exp_avg_sq.pt")
    torch.save(torch.tensor(3.0), where / "step.pt")
    assert open_checkpoint(tmp_path).source.ignored == ()
    with pytest.raises(SourceError, match=r"exp_avg_sq.pt' is an optimizer's state of one parameter in a universal"):
        open_checkpoint(where / "exp_avg_sq.pt")
    write(tmp_path / "zero" / "run" / "model.safetensors")
    assert len(open_checkpoint(tmp_path / "zero" / "run").matrices) == 1


def test_missing_shards_are_counted_in_order(tmp_path: Path) -> None:
    index(tmp_path, {f"layers.{i}.weight": f"model-0000{i}-of-00009.safetensors" for i in (6, 1, 2, 5, 4, 3)})
    write(tmp_path / "model-00009-of-00009.safetensors")
    with pytest.raises(
        SourceError, match=r"lacks model-00001-\S+ model-00002-\S+ model-00003-\S+ model-00004-\S+ and 2 more"
    ):
        open_checkpoint(tmp_path)


def test_files_that_were_not_read_are_counted() -> None:
    source = Source(kind="dir", location="x", files=("fp32.pt",), ignored=tuple(f"{i}.pt" for i in range(300)))
    assert source.unread.endswith("not read: 0.pt, 1.pt, 2.pt, 3.pt, 4.pt and 295 more.")


def test_the_hub_is_not_asked_again_for_what_it_lacks() -> None:
    names = ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    folder = Folder(Source(kind="hub", location="org/name"), tuple(names), LocalFiles(Path("/nowhere")))
    with pytest.raises(SourceError) as raised:
        require_files(["model-1-of-4.safetensors"], folder, names[0])
    assert "the repository itself has no such files; where" in str(raised.value)
    assert "fetch it again" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["model.pth.tar", "weights.th", "best_model", "net.model", "hf_model_0001_0.pt", "lit_model.pth", "ckpt.pt"]
)
@pytest.mark.parametrize("legacy", [True, False])
def test_names_of_programs(tmp_path: Path, name: str, legacy: bool) -> None:
    torch.save({"model": {QUERY: torch.ones(4, 4)}}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    (tmp_path / "vocabulary").write_bytes(b"\x80\x04]q\x00.")
    (tmp_path / "recipe_state.pt").write_bytes(b"")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.source.files == (name,)
    assert [matrix.name for matrix in checkpoint.matrices] == [QUERY]


def test_uncommon_names_in_a_run(tmp_path: Path) -> None:
    """They make no checkpoint of a folder with checkpoints in it."""
    torch.save({QUERY: torch.ones(4, 4)}, tmp_path / "state")
    write(tmp_path / "checkpoint-5" / "model.safetensors")
    with pytest.raises(SourceError, match="holds weights only in its folders checkpoint-5"):
        open_checkpoint(tmp_path)


def test_shards_of_torchtune(tmp_path: Path) -> None:
    for epoch in (0, 1):
        for shard, name in enumerate((QUERY, KEY), start=1):
            torch.save({name: torch.ones(4, 4) + epoch}, tmp_path / f"hf_model_{shard:04d}_{epoch}.pt")
    with pytest.raises(UsageError, match=r"2 different models: hf_model_0001_0.pt, hf_model_0001_1.pt"):
        open_checkpoint(tmp_path)
    checkpoint = open_checkpoint(tmp_path, file="hf_model_*_1.pt")
    assert [float(matrix.load()[0, 0]) for matrix in checkpoint.matrices] == [2, 2]
    for path in tmp_path.glob("*_1.pt"):
        path.unlink()
    assert len(open_checkpoint(tmp_path).matrices) == 2
    (tmp_path / "hf_model_0001_0.pt").unlink()
    with pytest.raises(SourceError, match=r"it lacks hf_model_0001_0.pt"):
        open_checkpoint(tmp_path)


def test_a_folder_of_the_hubs_cache(tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    for commit in ("a1", "b2"):
        write(cache / "snapshots" / commit / "model.safetensors", commit)
    with pytest.raises(SourceError, match=r"with 2 snapshots: give one, such as .*snapshots/a1"):
        open_checkpoint(cache)
    (cache / "refs").mkdir()
    for text, expected in (("b2\n", "b2"), ("a1", "a1")):
        (cache / "refs" / "main").write_text(text)
        checkpoint = open_checkpoint(cache)
        assert [matrix.name for matrix in checkpoint.matrices] == [expected]
        assert checkpoint.source.location == str(cache / "snapshots" / expected)
    (cache / "refs" / "main").write_text("../../../etc")
    with pytest.raises(SourceError, match="with 2 snapshots"):
        open_checkpoint(cache)


STEPS = {
    "nanochat": ["model_000500.pt", "meta_000500.json", "optim_000500_rank0.pt", "model_001000.pt"],
    "modded-nanogpt": ["state_step000500.pt", "state_step001000.pt", "log.txt"],
    "Lightning": ["epoch=0-step=500.ckpt", "epoch=1-step=1000-v1.ckpt", "last.txt"],
    "litgpt": ["step-00000500/", "step-00001000/", "final/"],
    "others first": ["checkpoint-500/", "checkpoint-1000/", "model_7.pt", "epoch_1/"],
    "pth.tar": ["checkpoint_500.pth.tar", "checkpoint_1000.pth.tar"],
}


@pytest.mark.parametrize("program", STEPS)
def test_steps_of_programs(tmp_path: Path, program: str) -> None:
    for name in STEPS[program]:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).touch()
    assert [step.step for step in find_steps(tmp_path)] == [500, 1000]


def test_epochs_are_steps_where_nothing_else_is(tmp_path: Path) -> None:
    for name in ("epoch_0", "epoch_1", "logs"):
        (tmp_path / name).mkdir()
    assert [step.step for step in find_steps(tmp_path)] == [0, 1]


def test_an_optimizer_beside_a_numbered_model(tmp_path: Path) -> None:
    """As nanochat saves them."""
    torch.save({"transformer.h.0.attn.c_q.weight": torch.ones(4, 4)}, tmp_path / "model_000500.pt")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optim_000500_rank0.pt")
    (tmp_path / "meta_000500.json").write_text("{}")
    assert open_checkpoint(tmp_path).source.files == ("model_000500.pt",)


def test_the_spectra_of_a_report_beside_the_model_are_no_model(tmp_path: Path) -> None:
    write(tmp_path / "mine.safetensors")
    first = specdiag.analyze(tmp_path).save(tmp_path / "first.json")
    assert first.with_suffix(".spectra.safetensors").exists()
    assert open_checkpoint(tmp_path).source.files == ("mine.safetensors",)
    assert open_checkpoint(tmp_path).source.ignored == ()
