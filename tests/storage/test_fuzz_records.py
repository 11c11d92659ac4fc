"""Saved records, logs and settings with anything in them end in a sentence; SPECDIAG_FUZZ_SECONDS fuzzes longer."""

import json
import os
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from cached_results import analyze, assert_same, entries, reseal
from fuzzing import fuzz, json_mutations, mutations, seconds
from helpers import lcg
from models import queries
from reference_models import report as reference_report
from saved_reports import seal

import specdiag
from specdiag.architecture.role_map import load_role_map
from specdiag.auditing.thresholds import load_checks
from specdiag.decay.plan import load_plan
from specdiag.dynamics.norm_log import NormedModule, load_norm_log, write_modules
from specdiag.errors import SourceError
from specdiag.records import Source
from specdiag.report import load_report
from specdiag.train.run_files import read_run
from specdiag.trajectories.decay_log import has_decay_log
from specdiag.trajectories.ledger import LEDGER_NAME, Finished, Ledger, read_ledger
from specdiag.trajectories.load import load_trajectory
from specdiag.trajectories.losses import read_losses
from specdiag.trajectories.metric_log import LOG_NAME, append_log, entry, latest, read_log
from specdiag.trajectories.records import StepResult, TrackedModule, Trajectory

NAME = "model.layers.0.self_attn.q_proj.weight"
BUDGET = seconds(0.7)


def report_file(folder):
    state = {
        NAME: torch.from_numpy(lcg(64, 64, 1)),
        "model.layers.0.mlp.up_proj.weight": torch.from_numpy(lcg(96, 64, 2)),
    }
    return specdiag.analyze(state, device="cpu", randomize=True).save(folder / "a.json")


def plan_file(folder):
    return specdiag.recommend(load_report(report_file(folder)), weight_decay=0.1).save(folder / "plan.json")


def trajectory_file(folder):
    source = Source(kind="dir", location="run/checkpoint-1")
    step = StepResult(step=1, source=source, report="step1.specdiag.json", n_matrices=1, statuses={"ok": 1}, loss=2.5)
    module = TrackedModule(key=NAME, role="q", family="attention", layer=0, rows=64, cols=64)
    rows = (entry(1, NAME, "alpha", 2.5), entry(1, "", "loss", 3.5))
    return Trajectory(run="run", out="out", steps=(step,), modules=(module,), rows=rows).save(folder / "t.json")


def ledger_file(folder):
    done = Finished(location="a", fingerprint="b", report="step1.specdiag.json", digest="c" * 64, specdiag="0.1")
    report_file(folder).rename(folder / "step1.specdiag.json")
    path = folder / LEDGER_NAME
    path.write_bytes(msgspec.json.encode(Ledger(run="run", options={}, steps={"1": done})))
    return path


def log_file(folder):
    path = folder / LOG_NAME
    append_log(path, [entry(s, NAME, m, s + 0.5) for s in range(4) for m in ("frobenius_norm", "weight_decay", "lr")])
    return path


def modules_file(folder):
    log_file(folder)
    module = NormedModule(key=NAME, role="q", family="attention", rows=64, cols=64, n_values=4096, decay="decoupled")
    write_modules(folder, 5, [module])
    return folder / "modules.json"


def state_file(folder):
    history = [{"step": s, "loss": 2.5, "learning_rate": 1e-3, "eval_loss": 3.5} for s in (1, 2)]
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"global_step": 2, "max_steps": 4, "log_history": history}))
    return path


def thresholds_file(folder):
    path = folder / "thresholds.toml"
    path.write_text('[rank]\nthreshold = 0.2\nseverity = "info"\n\n[trap]\nenabled = false\n')
    return path


def role_map_file(folder):
    path = folder / "roles.toml"
    path.write_text('[[rule]]\npattern = "*.mixer.*"\nrole = "q"\nfamily = "attention"\nlayer = 3\n')
    return path


def use_report(path):
    report = load_report(path)
    repr(report), report.to_records(), report.to_json(), report._repr_html_()
    for record in report:
        report.eigenvalues(record.key)
        report.eigenvalues(record.key, randomized=True)


def use_plan(path):
    plan = load_plan(path)
    repr(plan), plan.to_json()
    for item in plan.entries:
        plan.weight_decay(item.name, 3)


def use_trajectory(path):
    found = load_trajectory(path)
    found.to_json(), found.roles(), found.series("alpha", "q"), found.series("loss")


def use_ledger(path):
    for step in read_ledger(path).steps:
        int(step)
    load_trajectory(path.parent)


def use_norms(path):
    found = load_norm_log(path.parent)
    found.series("frobenius_norm"), found.trajectory()


def use_state(path):
    read_losses(path.parent, 2)
    found = read_run(path.parent)
    assert found is None or found.steps_left is None or found.steps_left >= 0


def reference_file(folder):
    return specdiag.build_reference([reference_report([1.5, 1.9], 0)]).save(folder / "reference.json")


TARGETS = {
    "report": (report_file, use_report),
    "plan": (plan_file, use_plan),
    "trajectory": (trajectory_file, use_trajectory),
    "ledger": (ledger_file, use_ledger),
    "log": (log_file, lambda path: latest(read_log(path))),
    "modules": (modules_file, use_norms),
    "norm log": (lambda folder: modules_file(folder).with_name(LOG_NAME), use_norms),
    "trainer state": (state_file, use_state),
    "reference": (reference_file, lambda path: specdiag.load_reference(path).to_json()),
    "thresholds": (thresholds_file, load_checks),
    "role map": (role_map_file, lambda path: load_role_map(path, ["model.0.mixer.weight", NAME])),
}
JSON = ("report", "plan", "trajectory", "ledger", "modules", "trainer state", "reference")


def read_with(use, path):
    def read(data: bytes) -> object:
        path.write_bytes(data)
        return use(path)

    return read


@pytest.mark.parametrize("name", TARGETS)
def test_bytes(tmp_path, name):
    make, use = TARGETS[name]
    path: Path = make(tmp_path)
    use(path)
    fuzz(read_with(use, path), mutations(path.read_bytes(), 1), BUDGET)


@pytest.mark.parametrize("name", JSON)
def test_values(tmp_path, name):
    make, use = TARGETS[name]
    path: Path = make(tmp_path)
    texts = (
        json.dumps(value, separators=(",", ":")).encode() for value in json_mutations(json.loads(path.read_bytes()), 2)
    )
    fuzz(read_with(use, path), texts, BUDGET)


@pytest.mark.parametrize("name", ["thresholds", "role map"])
def test_toml_values(tmp_path, name):
    make, use = TARGETS[name]
    path: Path = make(tmp_path)
    values = json_mutations({"rank": {"threshold": 0.2}, "rule": [{"pattern": "*", "role": "q"}], "x": 1}, 3)

    def texts():
        for value in values:
            try:
                yield msgspec.toml.encode(value)
            except (TypeError, ValueError, RecursionError, AttributeError):
                continue

    fuzz(read_with(use, path), texts(), BUDGET)


@pytest.mark.parametrize("is_sealed", [False, True], ids=["damaged", "damaged under its digest"])
def test_eigenvalues(tmp_path, is_sealed):
    path = report_file(tmp_path)
    spectra = path.with_suffix(".spectra.safetensors")

    def read(data):
        spectra.write_bytes(data)
        if is_sealed:
            seal(path, spectra)
        use_report(path)

    fuzz(read, mutations(spectra.read_bytes(), 4), BUDGET)


def test_kept_results(tmp_path):
    state = queries(1)
    plain = analyze(state, tmp_path)
    (path,) = entries(tmp_path)
    content = path.read_bytes()[32:]

    def read(data):
        reseal(path, data)
        report = analyze(state, tmp_path)
        if report.provenance.n_cached == 0:
            assert_same(plain, report)
        assert np.isfinite(report.eigenvalues(report.records[0].key)).all()

    fuzz(read, mutations(content, 5), BUDGET)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p: p["entries"][0].update(ratio=-0.5, weight_decay=-0.05), "has the ratio -0.5"),
        (lambda p: p["entries"][0].update(weight_decay=5.0), "has the decay 5.0, and its ratio times the base is"),
        (lambda p: p["entries"][0].update(weight_decay=None), "has the decay None, and its ratio"),
        (lambda p: p.update(base_weight_decay=None), "and its ratio times the base is None"),
        (lambda p: p.update(default_ratio=-1.0), "a ratio or decay is below 0"),
        (lambda p: p["entries"].append(p["entries"][0]), "is there twice"),
    ],
)
def test_plans_that_contradict_themselves(tmp_path, change, why):
    path = plan_file(tmp_path)
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError, match=f"cannot be used .*{why}"):
        load_plan(path)


@pytest.mark.parametrize(
    "value", ["1" + "0" * 400, "-1" + "0" * 400, "1e400", "-Infinity", "NaN", "true", "null", '"x"']
)
@pytest.mark.parametrize("name", ["global_step", "max_steps", "step", "loss", "learning_rate"])
def test_odd_numbers_in_a_trainers_state(tmp_path, name, value):
    path = state_file(tmp_path)
    text = path.read_text()
    path.write_text(re.sub(rf'"{name}": [^,}}]+', f'"{name}": {value}', text))
    read_losses(tmp_path, 2)
    try:
        found = read_run(tmp_path)
    except SourceError:
        return
    assert found is None or found.lr is None or 0 <= found.lr < 1


def test_a_log_that_is_a_pipe_or_too_large(tmp_path):
    path = tmp_path / LOG_NAME
    with path.open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(SourceError, match="it has 2048 MiB, and at most 1024 MiB are read"):
        read_log(path)
    with pytest.raises(SourceError, match="at most 1024 MiB"):
        has_decay_log(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SourceError, match="not a regular file"):
        read_log(path)
    assert not has_decay_log(tmp_path)
