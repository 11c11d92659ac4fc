"""watch: a run that writes while it is watched, alerts, other trackers, a process that dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
import tiny_run
import torch
from command import invoke, start, words
from safetensors.torch import load_file, save_file

import specdiag
from specdiag.errors import ComputationError, MissingExtraError, SourceError, UsageError
from specdiag.trajectories import one_step
from specdiag.trajectories.alerts import alerts
from specdiag.trajectories.metric_log import append_log, entry
from specdiag.trajectories.records import DroppedStep, StepResult, TrackedModule, Trajectory
from specdiag.trajectories.sinks import open_sink
from specdiag.trajectories.steps import RunStep

Q = "layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("watched") / "run"
    tiny_run.train(folder, steps=20, every=10)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def made(courses, statuses=None, loss=(1.0, 10)) -> Trajectory:
    """A trajectory with one matrix `w`: {metric: {step: value}}."""
    steps = sorted({s for course in courses.values() for s in course})
    source = specdiag.Source(kind="dir", location="made")
    return Trajectory(
        run="made",
        out="",
        steps=tuple(
            StepResult(
                step=s, source=source, report="", n_matrices=1, statuses={"ok": 1}, loss=loss[0], loss_step=loss[1]
            )
            for s in steps
        ),
        modules=(TrackedModule(key="w", role="q", family="attention", rows=64, cols=64),),
        rows=tuple(entry(s, "w", metric, value) for metric, course in courses.items() for s, value in course.items()),
    )


# Looking once


def test_once_gives_what_trajectory_gives(run, tmp_path):
    seen = list(specdiag.watch(run, once=True))
    assert [o.result.step for o in seen] == [0, 10, 20]
    whole = specdiag.trajectory(run, out=tmp_path / "other")
    assert seen[-1].trajectory.rows == whole.rows
    assert [s.resumed for s in specdiag.trajectory(run).steps] == [True] * 3
    again = list(specdiag.watch(run, once=True, spectra=True))
    assert all(o.result.resumed for o in again)


def test_eigenvalues_are_kept_where_asked(run):
    list(specdiag.watch(run, once=True, spectra=True, roles="q", randomize=True, jobs=1))
    report = specdiag.load_report(run / "specdiag_trajectory" / "step10.specdiag.json")
    assert report.eigenvalues(Q).shape == report.eigenvalues(Q, randomized=True).shape == (64,)
    assert {r.role for r in report} == {"q"}


def test_refusals(run, tmp_path):
    with pytest.raises(SourceError, match=r"no such directory: .*: the run must be on this machine"):
        list(specdiag.watch(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="holds no checkpoint"):
        list(specdiag.watch(tmp_path, once=True))
    with pytest.raises(UsageError, match="unknown role"):
        list(specdiag.watch(run, once=True, roles="queries"))
    with pytest.raises(UsageError, match="cannot be given to another process"):
        list(specdiag.watch(run, once=True, out=tmp_path / "out", progress=print))
    with pytest.raises(UsageError, match="interval"):
        list(specdiag.watch(run, interval=0))


def test_a_process_that_dies_is_one_step_lost(run, monkeypatch):
    real = subprocess.Popen

    def killed(*args, **kwargs):
        child = real(*args, **kwargs)
        os.kill(child.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(one_step.subprocess, "Popen", killed)
    with pytest.raises(ComputationError, match=r"ended with -9: is memory short\?"):
        one_step.analyse_in_subprocess(RunStep(10, str(run / "checkpoint-10")), {}, spectra=False)
    seen = list(specdiag.watch(run, once=True))
    assert all(isinstance(o.result, DroppedStep) for o in seen)


# Live


def test_a_run_that_writes_while_it_is_watched(trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    whole = (trained / "checkpoint-20" / "model.safetensors").read_bytes()
    deadline = time.monotonic() + 90

    def write():
        for step in (0, 10):
            time.sleep(0.3)
            shutil.copytree(trained / f"checkpoint-{step}", run / f"checkpoint-{step}")
        target = run / "checkpoint-20"
        target.mkdir()
        for end in range(1, 6):  # grows between any two looks, until it is whole
            (target / "model.safetensors").write_bytes(whole[: len(whole) * end // 5])
            time.sleep(0.15)
        while not (run / "specdiag_trajectory" / "step0.specdiag.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        shutil.rmtree(run / "checkpoint-0")  # as a Trainer that keeps two

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for observed in specdiag.watch(run, interval=0.2):
        seen.append(observed.result)
        if {0, 10, 20} <= {f.step for f in seen if isinstance(f, StepResult)} or time.monotonic() > deadline:
            break
    writer.join()
    done = {f.step for f in seen if isinstance(f, StepResult)}
    assert done == {0, 10, 20}
    final = specdiag.trajectory(run)
    assert [s.step for s in final.steps] == [0, 10, 20]
    assert all(s.resumed for s in final.steps)
    assert "gone" in final.notes[0]


def test_ctrl_c_ends_the_command(run):
    with start(words("watch", run, "--interval", "0.2")) as watching:
        lines = [watching.stderr.readline() for _ in range(3)]
        assert [line.split(":")[0] for line in lines] == ["step 0", "step 10", "step 20"]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
    assert watching.returncode == 130


# Alerts


def test_nan_is_an_alert_and_an_exit_code(run):
    file = run / "checkpoint-20" / "model.safetensors"
    weights = load_file(file)
    weights[Q][0, :3] = torch.inf
    weights["layers.1.self_attn.k_proj.weight"].zero_()
    save_file(weights, file)
    done = invoke("watch", run, "--once")
    assert done.exit_code == 1
    assert f"ALERT: step 20: 3 values of {Q} are NaN or infinite" in done.stderr
    assert "layers.1.self_attn.k_proj.weight had effective rank" in done.stderr
    assert done.stderr.count("ALERT") == 2
    assert done.stdout.startswith(f"2 alerts in 3 checkpoints, steps 0 to 20; the first at step 20: 3 values of {Q}")
    shutil.copy(run / "checkpoint-10" / "model.safetensors", file)
    assert invoke("watch", run, "--once").exit_code == 0


def test_alerts_of_a_norm_watch_come_with_the_checkpoint_that_follows(run):
    folder = run / "specdiag_norms"
    folder.mkdir()
    head, stays = "layers.0.self_attn[head=0.qk]", "layers.0.self_attn[head=1.qk]"
    courses = {head: {0: 30.0, 5: 35.0, 12: 5000.0, 15: 5100.0}, stays: dict.fromkeys((0, 5, 12, 15), 30.0)}
    rows = [entry(s, m, "score_bound", v) for m, course in courses.items() for s, v in course.items()]
    append_log(folder / "specdiag_log.jsonl", rows)
    raised = {o.result.step: o.alerts for o in specdiag.watch(run, once=True)}
    assert raised[0] == raised[10] == ()
    assert [(a.kind, a.step, a.module) for a in raised[20]] == [("scores", 12, head)]
    done = invoke("watch", run, "--once")
    assert done.exit_code == 1
    assert (
        f"ALERT: step 12: the bound of the attention scores of {head} went from 35 at step 5 to 5000, above"
        in done.stderr
    )


def test_alerts_on_known_courses():
    steady = {s: 10.0 + s / 100 for s in range(0, 60, 10)}
    found = made({"frobenius_norm": steady, "effective_rank": dict.fromkeys(steady, 40.0)})
    assert all(alerts(found, s) == [] for s in steady)
    assert [a.kind for a in alerts(made({"frobenius_norm": steady | {60: 12.0}}), 60)] == ["norm"]
    assert alerts(made({"frobenius_norm": steady | {60: 10.9}}), 60) == [], "fast, but small"
    assert alerts(made({"frobenius_norm": {0: 1.0, 10: 2.0, 20: 4.0, 30: 8.0}}), 30) == [], "fast, but its course"
    assert alerts(made({"frobenius_norm": {0: 1.0, 10: 9.0}}), 10) == [], "no course yet"
    collapsed = alerts(made({"effective_rank": {0: 40.0, 10: 19.0}}), 10)
    assert [(a.kind, a.module, a.value) for a in collapsed] == [("collapse", "w", 19.0)]
    assert alerts(made({"effective_rank": {0: 40.0, 10: 21.0}}), 10) == []
    bad = alerts(made({"frobenius_norm": {0: 1.0}}, loss=(None, 10)), 0)
    assert [a.message for a in bad] == ["the training loss logged at step 10 is not finite"]


# Other trackers


def test_trackers_receive_the_medians(run, monkeypatch):
    calls = []
    stub = types.ModuleType("trackio")
    stub.init = lambda **k: calls.append(("init", k))
    stub.log = lambda values, step: calls.append((step, values))
    stub.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, "trackio", stub)
    done = invoke("watch", run, "--once", "--to", "trackio")
    assert done.exit_code == 0, done.stderr
    assert [c[0] for c in calls] == ["init", 0, 10, 20, "finish"]
    assert calls[0][1]["name"] == "run"
    found = specdiag.trajectory(run)
    assert calls[3][1]["alpha/q"] == dict(found.series("alpha", "q"))[20]
    assert calls[3][1]["run/loss"] == dict(found.series("loss"))[20]
    assert calls[3][1]["run/alerts"] == 0


def test_tensorboard_by_a_stub(run, monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def flush(self):
            written.append("flush")

        def close(self):
            written.append("close")

    stub = types.ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    sink = open_sink("tensorboard", "runs/mine", tmp_path)
    sink.log(5, {"alpha/q": 2.0})
    sink.close()
    assert written == [str(tmp_path / "tensorboard"), ("alpha/q", 2.0, 5), "flush", "close"]


def test_a_tracker_that_is_not_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        open_sink("wandb", "run", run)
    with pytest.raises(UsageError, match="choose from trackio, wandb, tensorboard"):
        open_sink("paper", "run", run)
    assert invoke("watch", run, "--once", "--to", "wandb").exit_code == 2
