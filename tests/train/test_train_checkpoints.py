"""Which checkpoint a run goes on from, whatever killed it."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command import call

from specdiag import ComputationError
from specdiag.train.checkpoints.inspect import checkpoints_of, find_complete
from specdiag.train.checkpoints.manifest import MANIFEST, write_manifest
from specdiag.train.checkpoints.publish import publish, recover, rotate
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.starting_point import find_start

pytestmark = pytest.mark.usefixtures("one_thread")


def cut(path, size=None):
    os.truncate(path, path.stat().st_size // 2 if size is None else size)


def changed_state(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def of_another_version(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 154  # what is needed to read the first member
    path.write_bytes(data)


DAMAGE = {
    "optimizer.pt is cut short, or damaged (zip file version 15.4": lambda at: of_another_version(at / "optimizer.pt"),
    "model.safetensors is damaged": lambda at: cut(at / "model.safetensors"),
    "no weights": lambda at: (at / "model.safetensors").unlink(),
    "no optimizer.pt": lambda at: (at / "optimizer.pt").unlink(),
    "no scheduler.pt": lambda at: (at / "scheduler.pt").unlink(),
    "no rng_state.pth": lambda at: (at / "rng_state.pth").unlink(),
    "optimizer.pt is cut short": lambda at: cut(at / "optimizer.pt"),
    "scheduler.pt is no file of torch.save": lambda at: cut(at / "scheduler.pt", 0),
    "rng_state.pth is no file of torch.save": lambda at: (at / "rng_state.pth").write_bytes(b"garbage"),
    "trainer_state.json is no JSON: cut short": lambda at: cut(at / "trainer_state.json"),
    "trainer_state.json is of step 5": lambda at: changed_state(at / "trainer_state.json", global_step=5),
    "optimizer.pt is of step 4": lambda at: shutil.copy(at.parent / "checkpoint-4" / "optimizer.pt", at),
    "scheduler.pt is of step 4": lambda at: shutil.copy(at.parent / "checkpoint-4" / "scheduler.pt", at),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_torn_checkpoint_of_a_plain_trainer_is_passed_over_with_the_reason(copy, reason):
    DAMAGE[reason](copy / "checkpoint-6")
    found, passed_over = find_complete(copy)
    assert found == copy / "checkpoint-4"
    ((path, why),) = passed_over
    assert path.name == "checkpoint-6"
    assert why.startswith(reason)


def test_a_whole_one_is_taken(plain):
    assert find_complete(plain) == (plain / "checkpoint-6", [])


def test_a_parameter_at_another_step_is_found(copy):
    path = copy / "checkpoint-6" / "optimizer.pt"
    saved = torch.load(path)
    saved["state"][3]["step"] -= 1
    torch.save(saved, path)
    assert "parameters at step 5 and at step 6" in find_complete(copy)[1][0][1]


def test_a_manifest_finds_what_headers_do_not(copy):
    folder = copy / "checkpoint-6"
    write_manifest(folder)
    assert find_complete(copy)[0] == folder
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert find_complete(copy)[1][0][1] == "model.safetensors was changed after it was saved"


def test_an_older_one_survives_until_the_new_one_is_in_its_place(copy):
    (copy / ".saving").mkdir()
    shutil.copytree(copy / "checkpoint-6", copy / ".saving" / "checkpoint-6")
    (copy / "checkpoint-6").rename(copy / ".old-checkpoint-6")
    (said,) = recover(copy)[1:]
    assert said == "checkpoint-6 was to be replaced when the run was killed: the former one is back"
    assert find_complete(copy)[0].name == "checkpoint-6"
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_publishing_replaces_and_leaves_nothing_aside(copy):
    shutil.copytree(copy / "checkpoint-6", copy / ".saving" / "checkpoint-6")
    publish(copy, 6)
    assert (copy / "checkpoint-6" / MANIFEST).exists()
    assert not list(copy.glob(".old*"))
    rotate(copy, 1)
    assert [path.name for path in checkpoints_of(copy)] == ["checkpoint-6"]
    assert not list(copy.glob(".gone*"))


def test_a_full_disk_is_foreseen_and_loses_nothing(plain, text, tmp_path, monkeypatch):
    ready = prepare(Request(source=plain / "checkpoint-2", data=[text], out=tmp_path / "ours", decay="uniform"))
    monkeypatch.setattr(
        "specdiag.train.checkpoints.trainer.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0)
    )
    with pytest.raises(ComputationError, match=r"checkpoint-4 takes .* MiB and 0 are free .*go on with resume='"):
        ready.train()
    assert not checkpoints_of(tmp_path / "ours")


def test_a_disk_that_fills_up_while_saving_is_one_sentence(plain, text, tmp_path, monkeypatch):
    ready = prepare(Request(source=plain / "checkpoint-2", data=[text], out=tmp_path / "ours", decay="uniform"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specdiag.train.checkpoints.publish.write_manifest", full)
    with pytest.raises(
        ComputationError, match=r"No space left on device.* the checkpoints before it, if any, are whole"
    ):
        ready.train()
    assert not (tmp_path / "ours" / ".saving").exists()


def test_kill_9_at_every_point_of_saving_loses_no_checkpoint(plain, text, tmp_path):
    run = tmp_path / "run"
    ready = prepare(
        Request(source=plain / "checkpoint-2", data=[text], out=run, decay="uniform", settings={"save_total_limit": 1})
    )
    shutil.copytree(plain / "checkpoint-2", run / "checkpoint-2")
    script = Path(__file__).parents[1].joinpath("kill_while_saving.py")
    done = call([sys.executable, str(script), str(run)], env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    ready.train()
    for point in ("half_the_weights", "half_the_optimizer", "before_the_state", "before_the_manifest"):
        start = find_start(Path(f"{run}-{point}"), fresh=False, branch=False)
        assert start.step == 2, point
        lock, *said = start.notes
        assert lock.startswith(".specdiag.lock of process "), point
        assert said == ["checkpoint-4 was passed over: the run was killed while it was being saved"], point
    for point in ("after_the_manifest", "while_rotating"):
        assert find_start(Path(f"{run}-{point}"), fresh=False, branch=False).step == 4, point
    killed = Path(f"{run}-half_the_optimizer")
    prepare(Request(source=killed)).train()
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        assert (killed / "checkpoint-6" / name).read_bytes() == (run / "checkpoint-6" / name).read_bytes()
    assert [path.name for path in checkpoints_of(killed)] == ["checkpoint-6"]
