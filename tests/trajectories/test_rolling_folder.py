"""A folder that a run writes again and again: found by its name, copied at rest, recorded under the step in it."""

from __future__ import annotations

import json
import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from command import invoke
from distributed_files import save_one
from models import llama_state, tensors, write_checkpoint

import specdiag
from specdiag.errors import SourceError
from specdiag.trajectories import rolling
from specdiag.trajectories.records import DroppedStep, StepResult
from specdiag.trajectories.rolling import NoStepError, copied, rolling_folder
from specdiag.trajectories.steps import find_steps

Q = "model.layers.0.self_attn.q_proj.weight"


def norm(step: int) -> float:
    return float(tensors(llama_state(layers=1, seed=step))[Q].double().norm())


def save(folder: Path, step: int, state_first: bool = False) -> Path:
    """Write a checkpoint of a Trainer, whose weights tell the step, over the one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": step, "log_history": [{"step": step - 1, "loss": 3.5}]}
    if state_first:
        (folder / "trainer_state.json").write_text(json.dumps(state))
        time.sleep(0.02)
    write_checkpoint(folder, llama_state(layers=1, seed=step))
    (folder / "optimizer.pt").write_bytes(b"moments")
    if not state_first:
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tmp_path / "run" / "checkpoint-last", 200).parent


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["checkpoint-last"], "checkpoint-last"),
        (["latest"], "latest"),
        (["last.ckpt", "logs"], "last.ckpt"),
        (["step-latest", "best"], "step-latest"),
        (["best"], None),
        (["lastly"], None),
    ],
)
def test_the_folder_is_found_by_its_name(tmp_path: Path, names: list[str], found: str | None) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").touch()
    assert rolling_folder(tmp_path) == (None if found is None else tmp_path / found)
    if found is not None:
        assert rolling_folder(tmp_path / found) == tmp_path / found


def test_a_folder_without_a_file_that_tells_the_step_is_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-last", llama_state(layers=1))
    with pytest.raises(SourceError, match="holds no checkpoint-N and no stepN: give a glob"):
        find_steps(tmp_path)


def test_two_folders_are_not_guessed_between(run: Path) -> None:
    save(run / "latest", 300)
    for call in (specdiag.trajectory, lambda source: next(specdiag.watch(source))):
        with pytest.raises(SourceError, match="give the one that the run writes again and again"):
            call(run)
    assert [s.step for s in find_steps(run / "latest")] == [300]


def test_steps_in_names_come_first(run: Path) -> None:
    write_checkpoint(run / "checkpoint-7", llama_state(layers=1))
    assert [s.step for s in find_steps(run)] == [7]


def test_trajectory_and_watch_go_on_from_each_other(run: Path) -> None:
    first = specdiag.trajectory(run)
    assert [(s.step, s.loss, s.loss_step) for s in first.steps] == [(200, 3.5, 199)]
    save(run / "checkpoint-last", 300)
    (seen,) = specdiag.watch(run, once=True)
    assert isinstance(seen.result, StepResult)
    assert seen.result.source.location == str(run / "checkpoint-last")
    assert seen.trajectory.series("frobenius_norm", module=Q) == [(s, pytest.approx(norm(s))) for s in (200, 300)]
    assert [s.resumed for s in specdiag.trajectory(run).steps] == [True, True]
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-last", "specdiag_trajectory"]


def test_each_new_content_is_recorded_under_its_step(run: Path) -> None:
    steps = [200, 201, 250]

    def write() -> None:
        for before, step in pairwise(steps):
            report = run / "specdiag_trajectory" / f"step{before}.specdiag.json"
            deadline = time.monotonic() + 60
            while not report.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            (run / "checkpoint-last" / "model.safetensors").write_bytes(b"torn")
            time.sleep(0.3)
            save(run / "checkpoint-last", step)

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for observed in specdiag.watch(run, interval=0.1):
        seen.append(observed)
        if observed.result.step == steps[-1] or len(seen) > 40:
            break
    writer.join()
    assert [s.result.step for s in seen if isinstance(s.result, StepResult)] == steps
    assert seen[-1].trajectory.series("frobenius_norm", module=Q) == [(s, pytest.approx(norm(s))) for s in steps]
    assert not seen[-1].trajectory.dropped


def test_weights_that_are_newer_than_the_step_are_not_recorded_under_it(run: Path) -> None:
    save(run / "checkpoint-last", 300, state_first=True)
    for call in (specdiag.trajectory, lambda source: list(specdiag.watch(source, once=True))):
        with pytest.raises(
            SourceError, match=r"checkpoint-last' holds model.safetensors, which is newer than trainer_st"
        ):
            call(run)
    watching = specdiag.watch(run, interval=0.05)
    assert isinstance(next(watching).result, DroppedStep)
    os.utime(run / "checkpoint-last" / "trainer_state.json")
    healed = next(watching)
    assert healed.result.step == 300
    assert not healed.trajectory.dropped


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{}", "holds no global_step"), ('{"global_step": 2.5}', "holds 2.5 as its global_step"), ("[", "trainer_state")],
)
def test_a_folder_whose_step_is_none(run: Path, text: str, sentence: str) -> None:
    (run / "checkpoint-last" / "trainer_state.json").write_text(text)
    with pytest.raises(SourceError, match=sentence):
        specdiag.trajectory(run)


def test_a_distributed_checkpoint_of_lightning(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "last.ckpt"
    for step in (10, 20):
        save_one(folder, {"state_dict": tensors(llama_state(layers=1, seed=step))})
        torch.save({"global_step": step, "epoch": 1}, folder / "meta.pt")
        (seen,) = specdiag.watch(tmp_path / "run", once=True)
        assert seen.result.step == step
    assert seen.trajectory.series("frobenius_norm", module=Q) == [(s, pytest.approx(norm(s))) for s in (10, 20)]
    torch.save({"epoch": None}, folder / "meta.pt")
    with pytest.raises(NoStepError, match=r"meta.pt' holds no step"):
        specdiag.trajectory(tmp_path / "run")


def test_a_copy_holds_no_optimizer_and_is_gone_afterwards(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with copied(run / "checkpoint-last", tmp_path / "out") as content:
        assert content is not None
        there = sorted(path.name for path in Path(content.copy or "").iterdir())
    assert there == ["config.json", "model.safetensors", "trainer_state.json"]
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_never_rests_is_not_taken(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "_PAUSE", 0)
    real = rolling.shutil.copytree

    def written(source: Path, *more: object, **options: object) -> None:
        real(source, *more, **options)  # type: ignore[arg-type]
        os.utime(source / "model.safetensors", ns=(0, time.monotonic_ns()))

    monkeypatch.setattr(rolling.shutil, "copytree", written)
    with pytest.raises(SourceError, match="is being written"):
        list(specdiag.watch(run, once=True))


def test_files_that_vanish_while_they_are_copied(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = rolling.shutil.copytree, []
    monkeypatch.setattr(rolling, "_PAUSE", 0)

    def vanishing(source: Path, *more: object, **options: object) -> None:
        calls.append(source)
        if len(calls) == 1:
            (source / "optimizer.pt").unlink()
            raise rolling.shutil.Error([("optimizer.pt", "", "No such file")])
        real(source, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(rolling.shutil, "copytree", vanishing)
    (seen,) = specdiag.watch(run, once=True)
    assert seen.result.step == 200


def test_once_ends_with_4_where_no_checkpoint_could_be_analysed(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path / f"checkpoint-{step}", llama_state(layers=1))
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"torn")
    done = invoke("watch", tmp_path, "--once")
    assert done.exit_code == 0
    assert f"next: specdiag trajectory {tmp_path}" in done.stderr
    (tmp_path / "checkpoint-20" / "model.safetensors").write_bytes(b"torn")
    done = invoke("watch", tmp_path, "--once")
    assert done.exit_code == 4
    assert "none of 2 checkpoints could be analysed; step 10: " in done.stderr


def test_the_folder_of_a_projects_checkpoints_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"keeps its checkpoints in 'checkpoints': give '.*checkpoints'$"):
        find_steps(tmp_path)
