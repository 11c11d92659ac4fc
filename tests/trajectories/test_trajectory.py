"""trajectory: a real little run, resumption, kill -9, checkpoints being written, revisions of a hub repository."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import pytest
import tiny_run
import torch
from command import execute, invoke, start, words
from hub_stand_in import HubStandIn, Repo
from safetensors.numpy import save as to_bytes
from safetensors.torch import load_file, save_file

import specdiag
import specdiag.analysis.analyze
import specdiag.plot
from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.trajectories.load import load_trajectory
from specdiag.trajectories.losses import read_losses
from specdiag.trajectories.metric_log import latest, read_log
from specdiag.trajectories.records import DroppedStep, Trajectory
from specdiag.trajectories.steps import find_steps


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, tiny_run.train(folder)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture(scope="session")
def losses(trained) -> list[float]:
    return trained[1]


# A run


def test_every_number_is_that_of_analyze(run, losses):
    seen = []
    found = specdiag.trajectory(run, on_step=seen.append)
    assert [s.step for s in found.steps] == [0, 20, 40, 60]
    assert [s.step for s in seen] == [0, 20, 40, 60]
    assert found.dropped == ()
    report = specdiag.analyze(run / "checkpoint-40")
    assert found.steps[2].n_matrices == len(report)
    for metric in ("alpha", "square_alpha", "frobenius_norm", "stable_rank"):
        for role in ("q", "up"):
            expected = median(getattr(r, metric) for r in report if r.role == role)
            assert dict(found.series(metric, role))[40] == expected
    key = "layers.1.mlp.up_proj.weight"
    assert dict(found.series("spectral_norm", module=key))[40] == report[key].spectral_norm
    assert dict(found.series("balance_sd"))[40] == report.summary.balance_sd
    assert found.series("loss") == [(s, losses[s - 1]) for s in (20, 40, 60)]
    assert found.steps[0].loss is None
    assert losses[-1] < losses[0] - 1, "it learns"
    weights = [load_file(run / f"checkpoint-{s}" / "model.safetensors")[key].double().norm() for s in (0, 20, 40, 60)]
    assert [v for _, v in found.series("frobenius_norm", module=key)] == pytest.approx([float(w) for w in weights])
    out = run / "specdiag_trajectory"
    assert found.out == str(out)
    assert read_log(out / "specdiag_log.jsonl") == list(found.rows)
    assert [r.alpha for r in specdiag.load_report(out / "step40.specdiag.json")] == [r.alpha for r in report]


def test_finished_steps_are_not_analysed_again(run, monkeypatch):
    first = specdiag.trajectory(run)
    log = (run / "specdiag_trajectory" / "specdiag_log.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoint-20")
    os.utime(run / "checkpoint-40" / "model.safetensors")
    analysed = []
    real = specdiag.analysis.analyze.analyze
    monkeypatch.setattr(
        specdiag.analysis.analyze, "analyze", lambda source, **k: (analysed.append(source), real(source, **k))[1]
    )
    again = specdiag.trajectory(run)
    assert analysed == [str(run / "checkpoint-40")], "the one that was touched"
    assert [s.resumed for s in again.steps] == [True, True, False, True]
    assert again.rows == first.rows
    assert again.notes == ("1 checkpoints are gone by now; what was found in them is kept.",)
    assert (run / "specdiag_trajectory" / "specdiag_log.jsonl").read_bytes() == log
    (run / "specdiag_trajectory" / "step60.specdiag.json").write_text("{}")
    assert [s.resumed for s in specdiag.trajectory(run).steps] == [True, True, True, False]


def test_a_checkpoint_that_changed_is_logged_anew(run):
    specdiag.trajectory(run)
    shutil.copy(run / "checkpoint-0" / "model.safetensors", run / "checkpoint-60" / "model.safetensors")
    found = specdiag.trajectory(run)
    q = found.series("alpha", "q")
    assert q[0][1] == q[-1][1]
    log = read_log(run / "specdiag_trajectory" / "specdiag_log.jsonl")
    assert len(log) > len(found.rows)
    assert set(latest(log)) == set(found.rows)


def test_one_folder_holds_one_run_and_one_set_of_options(run, tmp_path):
    out = tmp_path / "out"
    specdiag.trajectory(run, out=out, roles="q")
    with pytest.raises(UsageError, match="was made with roles='q', not with defaults"):
        specdiag.trajectory(run, out=out)
    with pytest.raises(UsageError, match="holds the trajectory of"):
        specdiag.trajectory(f"{run}/checkpoint-*", out=out, roles="q")
    assert len(specdiag.trajectory(run, out=out, roles=["q"], jobs=1).steps) == 4
    with pytest.raises(UsageError, match="unknown role"):
        specdiag.trajectory(run, out=tmp_path / "other", roles="queries")
    with pytest.raises(UsageError, match="revision picks one checkpoint"):
        specdiag.trajectory(run, revision="main")


def test_a_run_may_be_named_otherwise_and_moved(run, monkeypatch):
    specdiag.trajectory(run)
    monkeypatch.chdir(run.parent)
    assert all(s.resumed for s in specdiag.trajectory("run/").steps)
    shutil.rmtree(run / "checkpoint-20")
    run.rename(run.parent / "moved")
    found = specdiag.trajectory("moved")
    assert [(s.step, s.resumed) for s in found.steps] == [(0, True), (20, True), (40, True), (60, True)]
    assert load_trajectory("moved").run == str(run.parent / "moved")


def test_what_is_being_written_is_left_out(run):
    whole = (run / "checkpoint-40" / "model.safetensors").read_bytes()
    (run / "checkpoint-40" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (run / "checkpoint-80").mkdir()
    (run / "checkpoint-100").mkdir()
    (run / "checkpoint-100" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}'
    )
    seen = []
    found = specdiag.trajectory(run, on_step=seen.append)
    assert [s.step for s in found.steps] == [0, 20, 60]
    assert [d.step for d in found.dropped] == [40, 80, 100]
    assert [type(s) is DroppedStep for s in seen] == [False, False, True, False, True, True]
    assert "lacks model-00001-of-00001.safetensors" in found.dropped[2].reason
    (run / "checkpoint-40" / "model.safetensors").write_bytes(whole)
    assert [s.step for s in specdiag.trajectory(run).steps] == [0, 20, 40, 60]
    done = execute("trajectory", run)
    assert done.returncode == 0
    assert "Step 80 left out" in done.stdout


def test_none_that_works_is_a_failure(tmp_path):
    (tmp_path / "step1").mkdir()
    with pytest.raises(ComputationError, match="none of 1 checkpoints could be analysed"):
        specdiag.trajectory(tmp_path)
    done = execute("trajectory", tmp_path)
    assert done.returncode == 4
    assert execute("trajectory", tmp_path / "step1").returncode == 3


def test_bad_values_do_not_end_a_trajectory(run):
    file = run / "checkpoint-60" / "model.safetensors"
    weights = load_file(file)
    weights["layers.0.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(weights, file)
    found = specdiag.trajectory(run)
    assert found.steps[-1].statuses["nonfinite"] == 1
    assert found.series("n_nonfinite") == [(60, 1.0)]
    assert [s for s, _ in found.series("alpha", "q", layer=0)] == [0, 20, 40]


# Interruptions


def test_ctrl_c_keeps_what_is_finished(run):
    def stop_at(found):
        if found.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(specdiag.TrajectoryInterrupted) as interrupted:
        specdiag.trajectory(run, on_step=stop_at)
    assert [s.step for s in interrupted.value.trajectory.steps] == [0, 20]
    assert [s.resumed for s in specdiag.trajectory(run).steps] == [True, True, False, False]


def test_kill_9_and_go_on(run, tmp_path):
    expected = specdiag.trajectory(run, out=tmp_path / "whole")
    code = (
        "import sys, time, specdiag\n"
        "specdiag.trajectory(sys.argv[1], out=sys.argv[2], on_step=lambda s: time.sleep(60 if s.step == 40 else 0))\n"
    )
    out = tmp_path / "out"
    writer = subprocess.Popen([sys.executable, "-c", code, str(run), str(out)])
    log = out / "specdiag_log.jsonl"
    deadline = time.monotonic() + 60
    while (not log.exists() or b'{"step":40' not in log.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    log.write_bytes(log.read_bytes()[:-30])  # as if the kill had come during the last write
    found = specdiag.trajectory(run, out=out)
    assert [s.resumed for s in found.steps] == [True, True, True, False]
    assert found.rows == expected.rows
    assert set(latest(read_log(log))) == set(expected.rows)


def test_polite_kill_of_the_command(run):
    done = start(words("trajectory", run))
    line = done.stderr.readline()
    assert line.startswith("step 0: ")
    done.send_signal(signal.SIGTERM)
    _, err = done.communicate(timeout=60)
    if done.returncode:  # it may have been done by then
        assert done.returncode == 128 + signal.SIGTERM
        assert "run it again to go on" in err
    assert execute("trajectory", run).returncode == 0


# Where the checkpoints are


def test_steps_are_sorted_as_numbers(tmp_path):
    for name in ("checkpoint-1000", "checkpoint-200", "checkpoint-3", "checkpoint-x", "runs", "best-checkpoint-7"):
        (tmp_path / name).mkdir()
    assert [s.step for s in find_steps(tmp_path)] == [3, 200, 1000]
    for name in ("a-v2-step5.safetensors", "a-v2-step40.safetensors"):
        (tmp_path / name).touch()
    assert [s.step for s in find_steps(f"{tmp_path}/a-v2-*.safetensors")] == [5, 40]
    other = tmp_path / "other"
    for name in ("step10", "step_2", "global_step7", "iter_9"):
        (other / name).mkdir(parents=True)
    (other / "step20.pt").touch()
    (other / "step30.log").touch()
    assert [s.step for s in find_steps(other)] == [2, 7, 9, 10, 20]
    assert [(s.step, s.revision) for s in find_steps("org/name", ["step20", "step3"])] == [(3, "step3"), (20, "step20")]


def test_steps_that_cannot_be_told(tmp_path):
    with pytest.raises(SourceError, match="no such directory"):
        find_steps(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="holds no checkpoint-N"):
        find_steps(tmp_path)
    with pytest.raises(SourceError, match="nothing matches"):
        find_steps(f"{tmp_path}/*.safetensors")
    for name in ("checkpoint-5", "step5"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="are both step 5"):
        find_steps(tmp_path)
    with pytest.raises(UsageError, match="'main' has no number"):
        find_steps("org/name", ["main"])
    with pytest.raises(UsageError, match="is a local path"):
        find_steps(tmp_path, "step1")


def test_a_run_that_cannot_be_written(run, tmp_path, monkeypatch):
    (run / "specdiag_trajectory").write_text("in the way")
    monkeypatch.chdir(tmp_path)
    assert specdiag.trajectory(run).out == "specdiag_trajectory"
    assert (tmp_path / "specdiag_trajectory" / "ledger.json").exists()


def test_revisions_of_a_hub_repository(tmp_path):
    rng = np.random.default_rng(0)

    def repo(step):
        name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
        weights = to_bytes({name: (step + 1) * rng.standard_normal((256, 64)).astype(np.float32)})
        # One commit a file list: the stand-in names commits after the names of their files.
        return Repo({"config.json": b'{"model_type": "gpt_neox"}', "model.safetensors": weights}, (f"step{step}",))

    with HubStandIn({"org/pythia": repo(1)}) as hub:
        env = hub.environment(tmp_path / "home")

        def call(revisions, **more):
            arguments = ("trajectory", "org/pythia", "--revisions", revisions, "-f", "json")
            return execute(*arguments, cwd=tmp_path, env=env | more)

        done = call("step1")
        assert done.returncode == 0, done.stderr
        hub.repos["org/pythia"] = repo(20)
        hub.repos["org/pythia"].files["README.md"] = b"another commit"
        done = call("step20,step3")
        assert done.returncode == 0, done.stderr
        found = msgspec.json.decode(done.stdout, type=Trajectory)
        assert [(s.step, s.source.revision) for s in found.steps] == [(20, "step20")]
        assert found.steps[0].source.commit == hub.repos["org/pythia"].commit
        assert "has no revision 'step3'" in found.dropped[0].reason
        assert found.modules[0].role == "up"
        hub.requests.clear()
        done = call("step1,step20", HF_HUB_OFFLINE="1")
        found = msgspec.json.decode(done.stdout, type=Trajectory)
        assert [s.resumed for s in found.steps] == [True, True]
        norms = [value for _, value in found.series("frobenius_norm", "up")]
        assert norms[1] / norms[0] == pytest.approx(21 / 2, rel=0.05)
        assert hub.requests == []


# The loss


def test_losses_are_the_last_logged(tmp_path):
    folder = tmp_path / "checkpoint-50"
    folder.mkdir()
    history = [
        {"step": 10, "loss": 3.0}, {"step": 40, "loss": 2.0, "grad_norm": 1}, {"step": 50, "eval_loss": 2.5},
        {"step": 60, "loss": 1.0}, {"step": 45, "loss": "bad"}, "noise",
    ]  # fmt: skip
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert read_losses(folder, 50) == (2.0, 40, 2.5)
    assert read_losses(folder, 5) == (None, None, None)
    (folder / "trainer_state.json").write_text('{"log_history": [{"step": 50, "loss": NaN}]}')
    assert read_losses(folder, 50) == (None, 50, None)
    (folder / "trainer_state.json").write_text('{"log_')
    assert read_losses(folder, 50) == (2.0, 40, 2.5)


# The command


def test_command(run, tmp_path):
    done = invoke("trajectory", run)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("From step 0 to 60 attention became ")
    head = done.stdout.splitlines()[3].split()
    assert head == ["step", "loss", "balance", "q", "k", "v", "o", "up", "down", "embed", "head"]
    assert "Step 0 → step 60" in done.stdout
    assert "step 60: " in done.stderr
    done = invoke("trajectory", run, "-f", "csv")
    lines = done.stdout.splitlines()
    found = specdiag.trajectory(run)
    assert lines[0] == "step,module,metric,value"
    assert len(lines) == len(found.rows) + 1
    done = invoke("trajectory", run, "-f", "md", "--metric", "stable_rank")
    assert done.stdout.startswith("| step | loss | q |")
    done = invoke("trajectory", run, "--metric", "loss")
    assert done.stdout.splitlines()[3].split() == ["step", "loss"]
    assert invoke("trajectory", run, "--metric", "charm").exit_code == 2
    found.save(tmp_path / "t.json")
    assert load_trajectory(tmp_path / "t.json") == found
    for folder in (run, run / "specdiag_trajectory"):
        again = load_trajectory(folder)
        assert (again.rows, again.modules) == (found.rows, found.modules)
    with pytest.raises(SourceError, match="holds no trajectory"):
        load_trajectory(run / "checkpoint-0")
    with pytest.raises(SourceError, match="is no trajectory"):
        load_trajectory(run / "checkpoint-0" / "config.json")


# Figures


def test_figures_show_the_medians(run):
    found = specdiag.trajectory(run)
    figure = specdiag.plot.trajectory(found, metric="alpha")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert {"q", "k", "v", "o", "up", "down", "embed", "head"} <= set(lines)
    for role in ("q", "down"):
        assert list(zip(*lines[role].get_data(), strict=True)) == found.series("alpha", role)
    null = specdiag.analyze(run / "checkpoint-0")["layers.0.mlp.up_proj.weight"].alpha_null
    assert any(abs(line.get_ydata()[0] - null) < 0.005 for axes in figure.axes for line in axes.lines)
    losses = [axes for axes in figure.axes if axes.get_title() == "training loss"]
    assert list(losses[0].lines[0].get_ydata()) == [v for _, v in found.series("loss")]
    figure = specdiag.plot.norms(found, roles=("q", "up"))
    values = [v for _, v in found.series("frobenius_norm", "q")]
    assert list(figure.axes[0].lines[0].get_ydata()) == [v / values[0] for v in values]
    assert list(figure.axes[2].lines[1].get_ydata()) == [v for _, v in found.series("stable_rank", "up")]
    assert "norms changed by " in figure.get_suptitle()
    assert figure.get_suptitle().endswith(" steps")
    with pytest.raises(UsageError, match="has no role gate"):
        specdiag.plot.norms(found, roles="gate")
    with pytest.raises(UsageError, match="unknown metric='loss'"):
        specdiag.plot.trajectory(found, metric="loss")


def test_figures_show_products_where_the_run_has_them(run):
    """A matrix of each role stands for a product: no product of these models has an exponent."""
    found = specdiag.trajectory(run)
    renamed = {"q": "qk", "o": "ov", "down": "du"}
    modules = [
        msgspec.structs.replace(module, form="function", role=renamed[module.role])
        if module.role in renamed
        else module
        for module in found.modules
    ]
    found = msgspec.structs.replace(found, modules=tuple(modules))
    lines = {
        line.get_label(): line for axes in specdiag.plot.trajectory(found, metric="alpha").axes for line in axes.lines
    }
    assert {"k", "up", "qk", "ov", "du"} <= set(lines)
    assert {lines[role].get_linestyle() for role in ("qk", "ov", "du")} == {":"}
    assert list(zip(*lines["ov"].get_data(), strict=True)) == found.series("alpha", "ov") != []
    assert specdiag.plot.trajectory(found, metric="alpha", roles="du").axes[0].lines[0].get_label() == "du"
    with pytest.raises(UsageError, match="has no role qk"):
        specdiag.plot.norms(found, roles="qk")


@pytest.mark.parametrize("kind", ["trajectory", "norms"])
def test_plot_command(run, tmp_path, kind):
    specdiag.trajectory(run)
    done = invoke("plot", kind, run, "-o", tmp_path / "f.svg", "--role", "q")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "f.svg").read_bytes().startswith(b"<?xml")
    assert invoke("plot", kind, tmp_path, "-o", tmp_path / "g.svg").exit_code == 3


def test_a_finished_step_whose_report_is_damaged_is_named(run):
    specdiag.trajectory(run)
    (run / "specdiag_trajectory" / "step20.specdiag.json").write_text("{")
    shutil.rmtree(run / "checkpoint-20")
    (dropped,) = specdiag.trajectory(run).dropped
    assert dropped.step == 20
    assert "is no specdiag report" in dropped.reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda ledger: ledger.update(schema=99), "of schema 99"),
        (lambda ledger: ledger["steps"].update(x=ledger["steps"]["20"]), "step 'x' in 'step20.specdiag.json'"),
        (lambda ledger: ledger["steps"]["20"].update(report="../../a.json"), "in '../../a.json'"),
    ],
)
def test_a_ledger_that_no_trajectory_writes(run, change, why):
    specdiag.trajectory(run)
    path = run / "specdiag_trajectory" / "ledger.json"
    ledger = json.loads(path.read_text())
    change(ledger)
    path.write_text(json.dumps(ledger))
    for read in (specdiag.trajectory, load_trajectory):
        with pytest.raises(SourceError, match=why):
            read(run)
