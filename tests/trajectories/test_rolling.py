"""A file that a run writes again and again: found, copied while it is whole, recorded under the step that it holds."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command import invoke
from models import llama_state, tensors, write_checkpoint

import specdiag
from specdiag.errors import SourceError, UsageError
from specdiag.trajectories import rolling
from specdiag.trajectories.metric_log import latest, read_log
from specdiag.trajectories.records import DroppedStep, StepResult
from specdiag.trajectories.rolling import NoStepError, copied, rolling_file
from specdiag.trajectories.saved_step import saved_step
from specdiag.trajectories.steps import find_steps

Q = "model.layers.0.self_attn.q_proj.weight"


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    return tensors(llama_state(layers=1, seed=seed))


def nano_gpt(step: int) -> dict[str, object]:
    """The dictionary of nanoGPT's train.py; the weights tell the step."""
    return {
        "model": {f"_orig_mod.{name}": tensor for name, tensor in weights(step).items()},
        "optimizer": {"state": {}, "param_groups": []},
        "model_args": {"n_layer": 1},
        "iter_num": step,
        "best_val_loss": torch.tensor(3.2),
        "config": {"learning_rate": 1e-3},
    }


def save(content: object, path: Path, **options: bool) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def norm(step: int) -> float:
    return float(weights(step)[Q].double().norm())


def steps_once(run: Path, **options: object) -> list[int | None]:
    return [seen.result.step for seen in specdiag.watch(run, once=True, **options)]


@pytest.fixture
def run(tmp_path) -> Path:
    return save(nano_gpt(200), tmp_path / "run" / "ckpt.pt").parent


# Where a file holds its step

LAYOUTS = {
    "ckpt.pt": ({"model": weights(), "iter_num": 200, "epoch": 3}, 200),
    "last.ckpt": ({"state_dict": weights(), "global_step": 70, "epoch": 1, "loops": {}, "pytorch-lightning_version": "2"}, 70),
    "latest.pth": ({"meta": {"epoch": 2, "iter": 5000}, "state_dict": weights(), "message_hub": {}}, 5000),
    "checkpoint_last.pt": (
        {"model": weights(), "optimizer_history": [{"num_updates": 10}, {"num_updates": 30}], "extra_state": {"val_loss": 1.0}},
        30,
    ),
    "model.pth.tar": ({"state_dict": weights(), "epoch": 4, "arch": "vit"}, 4),
    "state.th": ({"model": weights(), "step": torch.tensor(12)}, 12),
    "any.pt": ({"model_state_dict": weights(), "iteration": 8.0, "loss": 0.1}, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_step_is_read_from_the_file(tmp_path, name, zipped):
    content, step = LAYOUTS[name]
    file = save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert saved_step(file) == step
    assert [(s.step, s.location) for s in find_steps(tmp_path)] == [(step, str(file))]
    assert [s.step for s in find_steps(file)] == [step]


def test_counters_of_the_whole_run_come_before_others(tmp_path):
    assert saved_step(save({"epoch": 2, "step": 7, "global_step": 900}, tmp_path / "a.pt")) == 900
    assert saved_step(save({"iter_num": 0, "step": 7}, tmp_path / "a.pt")) == 0
    assert saved_step(save({"iter": None, "epoch": 2}, tmp_path / "a.pt")) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": weights()}, "holds no step"),
        ([weights()], "holds no step"),
        ({"model": weights(), "iter_num": "200", "epoch": 3}, "holds '200' as its iter_num, which is no step"),
        ({"model": weights(), "step": np.int64(3), "epoch": 1}, "holds an object of numpy.* as its step"),
        ({"model": weights(), "step": -1}, "holds -1 as its step"),
        ({"model": weights(), "step": 2.5}, "holds 2.5 as its step"),
        ({"model": weights(), "step": True}, "holds True as its step"),
        ({"model": weights(), "step": torch.ones(3)}, "holds a Tensor as its step"),
    ],
)
def test_a_file_without_a_step_is_refused(tmp_path, content, words):
    file = save(content, tmp_path / "ckpt.pt")
    with pytest.raises(NoStepError, match=words):
        saved_step(file)
    with pytest.raises(NoStepError, match="give a glob of the run's checkpoints"):
        specdiag.trajectory(tmp_path)
    with pytest.raises(NoStepError):
        next(specdiag.watch(tmp_path))


def test_another_format_holds_no_step(tmp_path):
    file = write_checkpoint(tmp_path / "a", weights()) / "model.safetensors"
    with pytest.raises(SourceError, match="is no run: give a directory"):
        find_steps(file)
    shutil.copy(file, tmp_path / "last.ckpt")
    with pytest.raises(NoStepError, match="is a file of safetensors, which holds no step"):
        find_steps(tmp_path / "last.ckpt")


# Which file it is


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["ckpt.pt"], "ckpt.pt"),
        (["best.pt", "last.pt"], "last.pt"),
        (["checkpoint_best.pt", "checkpoint_last.pt"], "checkpoint_last.pt"),
        (["latest.pth.tar", "model_best.pth.tar"], "latest.pth.tar"),
        (["last.ckpt", "optimizer.pt", "rng_state.pth", "config.json"], "last.ckpt"),
        (["run.pt"], "run.pt"),
        (["model-100.pt"], None),
        (["model-100.pt", "model-200.pt"], None),
        (["ckpt.pt", "model.safetensors"], None),
        (["pytorch_model.bin"], None),
        (["optimizer.pt", "scheduler.pt"], None),
        ([], None),
    ],
)
def test_the_file_is_found_by_its_name(tmp_path, names, found):
    for name in names:
        (tmp_path / name).touch()
    assert rolling_file(tmp_path) == (None if found is None else tmp_path / found)
    if found is None:
        with pytest.raises(SourceError, match="holds no checkpoint-N and no stepN: give a glob"):
            find_steps(tmp_path)


@pytest.mark.parametrize("names", [["a.pt", "b.pt"], ["ckpt.pt", "last.pt"], ["best.pt", "model-100.pt"]])
def test_two_files_are_not_guessed_between(tmp_path, names):
    for name in names:
        save(nano_gpt(1), tmp_path / name)
    for call in (specdiag.trajectory, lambda run: next(specdiag.watch(run))):
        with pytest.raises(SourceError, match="give the one that the run writes again and again"):
            call(tmp_path)
    assert steps_once(tmp_path / names[0]) == [1]


def test_steps_in_names_come_first(tmp_path):
    save(nano_gpt(30), tmp_path / "last.ckpt")
    save(nano_gpt(20), tmp_path / "epoch=0-step=20.ckpt")
    assert [s.step for s in find_steps(tmp_path)] == [20]
    assert steps_once(tmp_path) == [20]


# Recording


def test_trajectory_takes_it_as_one_step_and_keeps_the_earlier_ones(run):
    for step in (200, 400, 600):
        save(nano_gpt(step), run / "ckpt.pt")
        found = specdiag.trajectory(run)
        assert found.steps[-1].source.location == str(run / "ckpt.pt")
        assert found.series("frobenius_norm", module=Q)[-1] == (step, pytest.approx(norm(step)))
    assert [s.step for s in found.steps] == [200, 400, 600]
    assert found.notes == ("2 checkpoints are gone by now; what was found in them is kept.",)
    again = specdiag.trajectory(run)
    assert [(s.step, s.resumed) for s in again.steps] == [(200, True), (400, True), (600, True)]
    assert again.rows == found.rows
    assert specdiag.load_trajectory(run).rows == found.rows


def test_watch_and_trajectory_go_on_from_each_other(run, monkeypatch):
    assert steps_once(run) == [200]
    save(nano_gpt(300), run / "ckpt.pt")
    assert [(s.step, s.resumed) for s in specdiag.trajectory(run).steps] == [(200, True), (300, False)]
    (seen,) = specdiag.watch(run, once=True)
    assert seen.result.resumed
    assert [s.step for s in seen.trajectory.steps] == [200, 300]
    monkeypatch.chdir(run)
    assert [s.resumed for s in specdiag.trajectory(".").steps] == [True, True], "under another name of the folder"


def test_each_new_content_is_recorded_under_its_step(run):
    steps = [200, 201, 250, 400]

    def write() -> None:
        for step in steps[1:]:
            report = run / "specdiag_trajectory" / f"step{steps[steps.index(step) - 1]}.specdiag.json"
            deadline = time.monotonic() + 60
            while not report.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            whole = save(nano_gpt(step), run.parent / "next.pt").read_bytes()
            with (run / "ckpt.pt").open("r+b") as file:  # the same inode, torn for a while
                file.truncate(len(whole) // 3)
                time.sleep(0.1)
                file.truncate(0)
                file.write(whole)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for observed in specdiag.watch(run, interval=0.1):
        seen.append(observed)
        if observed.result.step == steps[-1] or len(seen) > 40:
            break
    writer.join()
    done = [s.result.step for s in seen if isinstance(s.result, StepResult)]
    assert done == steps
    assert seen[-1].trajectory.series("frobenius_norm", module=Q) == [(s, pytest.approx(norm(s))) for s in steps]
    assert not seen[-1].trajectory.dropped
    assert sorted(p.name for p in (run / "specdiag_trajectory").iterdir())[0] == "ledger.json", "no copy is left"


def test_a_torn_file_is_named_and_awaited(run):
    whole = (run / "ckpt.pt").read_bytes()
    (run / "ckpt.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match="is a damaged zip archive"):
        steps_once(run)
    with pytest.raises(SourceError, match="is a damaged zip archive"):
        specdiag.trajectory(run)
    watching = specdiag.watch(run, interval=0.05)
    torn = next(watching)
    assert isinstance(torn.result, DroppedStep)
    assert torn.result.step is None
    assert str(run / "ckpt.pt") in torn.result.reason
    assert ".copy-" not in torn.result.reason
    assert torn.trajectory.dropped == (torn.result,)
    (run / "ckpt.pt").write_bytes(whole)
    healed = next(watching)
    assert healed.result.step == 200
    assert not healed.trajectory.dropped
    (run / "ckpt.pt").unlink()
    threading.Timer(
        0.3, lambda: (run / "ckpt.pt").write_bytes(save(nano_gpt(300), run.parent / "n.pt").read_bytes())
    ).start()
    seen = next(watching)
    while seen.result.step is None:  # looked at between its writing and its end
        seen = next(watching)
    assert seen.result.step == 300, "gone for a while"


def test_two_contents_of_one_step_are_one_point_and_the_later_holds(run):
    specdiag.trajectory(run)
    save({**nano_gpt(201), "iter_num": 200}, run / "ckpt.pt")
    (seen,) = specdiag.watch(run, once=True)
    assert seen.trajectory.series("frobenius_norm", module=Q) == [(200, pytest.approx(norm(201)))]
    log = read_log(run / "specdiag_trajectory" / "specdiag_log.jsonl")
    assert set(latest(log)) == set(seen.trajectory.rows)
    assert seen.trajectory.notes == ()


@pytest.mark.parametrize("step", [0, 100, 199])
def test_a_file_that_goes_back_is_another_course(run, tmp_path, step):
    specdiag.trajectory(run)
    before = (run / "specdiag_trajectory" / "ledger.json").read_bytes()
    save(nano_gpt(step), run / "ckpt.pt")
    (seen,) = specdiag.watch(run, once=True)
    assert isinstance(seen.result, DroppedStep)
    assert seen.result.reason.startswith("it went back from step 200")
    found = specdiag.trajectory(run)
    assert [s.step for s in found.steps] == [200]
    assert [d.step for d in found.dropped] == [step]
    assert (run / "specdiag_trajectory" / "ledger.json").read_bytes() == before
    assert steps_once(run, out=tmp_path / "new") == [step]


def test_the_report_names_the_file_and_not_its_copy(run):
    (run / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    list(specdiag.watch(run, once=True))
    saved = (run / "specdiag_trajectory" / "step200.specdiag.json").read_text()
    report = specdiag.load_report(run / "specdiag_trajectory" / "step200.specdiag.json")
    assert ".copy-" not in saved
    assert report.source == specdiag.analyze(run / "ckpt.pt").source
    assert report.provenance.notes == specdiag.analyze(run / "ckpt.pt").provenance.notes
    assert report.provenance.fingerprint == specdiag.analyze(run / "ckpt.pt").provenance.fingerprint


# Copies


def test_a_file_that_never_rests_is_not_taken(run, monkeypatch):
    monkeypatch.setattr(rolling, "_PAUSE", 0)
    real = rolling.identity

    def touched(file: Path) -> str:
        now = real(file)
        os.utime(file, ns=(0, time.monotonic_ns()))
        return now

    monkeypatch.setattr(rolling, "identity", touched)
    with copied(run / "ckpt.pt", run) as content:
        assert content is None
    with pytest.raises(SourceError, match="is being written"):
        steps_once(run)


def test_a_copy_is_gone_afterwards_and_that_of_a_killed_process_too(run):
    (run / ".copy-dead").mkdir()
    (run / ".copy-dead" / "ckpt.pt").touch()
    (run / ".copy-living").mkdir()
    handle = os.open(run / ".copy-living", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with copied(run / "ckpt.pt", run) as content:
        assert Path(content.copy).read_bytes() == (run / "ckpt.pt").read_bytes()
        assert Path(content.copy).stat().st_mtime_ns == (run / "ckpt.pt").stat().st_mtime_ns
    os.close(handle)
    assert sorted(path.name for path in run.iterdir()) == [".copy-living", "ckpt.pt"]


def test_a_copy_that_cannot_be_made_is_said(run, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rolling.shutil, "copy2", full)
    seen = next(specdiag.watch(run, interval=0.05))
    assert seen.result.step is None
    assert seen.result.reason.endswith("No space left on device")


# The command


def test_the_commands(run, tmp_path):
    done = invoke("watch", run, "--once")
    assert done.exit_code == 0, done.stderr
    assert "step 200: 8 matrices" in done.stderr
    assert invoke("trajectory", run, "--all").exit_code == 0
    save({"model": weights()}, tmp_path / "bare" / "ckpt.pt")
    for command in (("watch", "--once"), ("watch",), ("trajectory",)):
        refused = invoke(command[0], tmp_path / "bare", *command[1:])
        assert refused.exit_code == 3
        assert "holds no step" in refused.stderr
    with pytest.raises(UsageError, match="holds the trajectory of"):
        specdiag.trajectory(run / "ckpt.pt")
