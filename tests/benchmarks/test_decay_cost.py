"""The benchmark of AlphaDecay's cost runs, goes on where it stopped, and docs/optim.md shows what it last said."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from command import benchmark

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
decay_cost, tables = (importlib.import_module(name) for name in ("decay_cost", "decay_cost_tables"))

TINY = {"width": 64, "inner": 96, "layers": 1, "batch": [1, 64], "steps": 3, "warmup": 1}


@pytest.fixture
def tiny(monkeypatch):
    for name, value in TINY.items():
        monkeypatch.setitem(decay_cost.SETTING, name, value)


def measured(every, share):
    return {"every": every, "shares": [share] * 3, "step_seconds": [0.25] * 3, "waited_seconds": [0.0025] * 3}


@pytest.fixture
def results():
    held = {}
    for mode, at_once in (("sweep", 0.2), ("round-robin", 0.2), ("background", 0.04)):
        held |= {f"{mode} 1": measured(1, at_once), f"{mode} 10": measured(10, at_once / 10)}
        held[f"{mode} pass"] = measured(10 if mode == "sweep" else 28, at_once / 20)
    for each in held.values():
        each["cores_used_by_others"] = 0.02
    runs = {f"{name}/{seed}": 2.0 + seed for name in ("uniform", *tables.INTERVALS) for seed in (0, 1)}
    return {
        "setting": decay_cost.SETTING,
        "cost": {"matrices": 28, "measured": held},
        "loss": {"runs": runs | {"50/0": 1.9, "50/1": 2.9}},
        "norms": {"shares": [0.1, 0.2, 0.3], "weights": 3_200_000, "cores_used_by_others": 0.0},
        "machine": {"cpu": "a processor", "cores": 2},
        "date": "2026-11-22T00:00:00+00:00",
    }


def test_long_intervals_are_a_pass_divided(results):
    assert tables.share(results, "sweep", 1) == 0.2
    assert tables.share(results, "sweep", 500) == pytest.approx(0.01 * 10 / 500)
    assert tables.share(results, "background", 100) == pytest.approx(0.002 * 28 / 100)
    assert "| `background` | 4.00 % | 0.40 % | 0.06 % | 0.01 % |" in tables.cost_table(results)
    assert "| every 50 | 2.4000 | -0.1000 ± 0.0000 | 1.006 | 1.001 |" in tables.loss_table(results)
    assert "training waits for 1.0 %" in tables.cost_table(results)


def test_norms_cost_a_logged_step_divided_by_the_interval(results):
    said = tables.norms_text(results)
    assert "A logged step takes 20 % more time" in said
    assert "interval of 50 the whole run takes 0.40 % more" in said


def test_a_busy_machine_is_said(results):
    assert "NOT TO BE QUOTED" not in tables.cost_table(results)
    results["cost"]["measured"]["sweep 1"]["cores_used_by_others"] = 0.9
    assert "NOT TO BE QUOTED: others kept up to 0.90 cores busy" in tables.cost_table(results)


def test_figures_get_into_the_page_and_others_are_noticed(results, tmp_path):
    source, page = tmp_path / "decay_cost.json", tmp_path / "optim.md"
    page.write_text(decay_cost.DOCS.read_text())
    source.write_text(json.dumps(results))
    assert tables.update_docs(page, source, check=False) == 0
    assert tables.update_docs(page, source, check=True) == 0
    results["loss"]["runs"]["1/0"] += 0.1
    source.write_text(json.dumps(results))
    assert tables.update_docs(page, source, check=True) == 1


@pytest.mark.usefixtures("tiny", "one_thread")
def test_it_measures_all_and_goes_on_where_it_stopped(tmp_path, capsys):
    text = decay_cost.read_text()
    options = Namespace(rounds=1, out=tmp_path / "decay_cost.json")
    found = {"setting": decay_cost.SETTING}
    decay_cost.costs(text, found, options)
    decay_cost.losses(text, found, options)
    decay_cost.norms(text, found, options)
    page = tmp_path / "optim.md"
    page.write_text(decay_cost.DOCS.read_text())
    assert tables.update_docs(page, options.out, check=False) == 0
    held = decay_cost._resumed(options.out)
    assert held["machine"]["cpu"]
    assert "torch" in held["versions"]
    assert {k: v["every"] for k, v in held["cost"]["measured"].items() if "pass" in k}["background pass"] == 7
    del held["loss"]["runs"]["1/1"]
    capsys.readouterr()
    decay_cost.costs(text, held, options)
    decay_cost.losses(text, held, options)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["1/1"]
    assert held["loss"]["runs"] == found["loss"]["runs"]
    decay_cost.SETTING["lr"] *= 2
    try:
        assert decay_cost._resumed(options.out).keys() == {"setting"}
    finally:
        decay_cost.SETTING["lr"] /= 2


@pytest.mark.usefixtures("tiny", "one_thread")
def test_the_trainings_that_are_compared_differ_in_decay_alone():
    text = decay_cost.read_text()
    plain, ours = decay_cost.Training(text, 0), decay_cost.Training(text, 0, every=1, s1=1.0, s2=1.0)
    assert plain.run(3) > 0
    ours.run(3)
    pairs = zip(plain.model.parameters(), ours.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_the_page_shows_the_committed_figures():
    done = benchmark("decay_cost.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr
    assert "NOT TO BE QUOTED" not in decay_cost.DOCS.read_text()
