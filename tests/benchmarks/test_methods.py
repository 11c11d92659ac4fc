"""docs/methods.md shows what the benchmark of the optimizers said, and the benchmark says what its runs hold."""

import copy
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from command import benchmark

from specdiag.decay import schedules
from specdiag.optim import METHODS

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks" / "results" / "methods.json"
sys.path.append(str(ROOT / "benchmarks"))
methods, tables, momentum, momentum_tables = (
    importlib.import_module(name) for name in ("methods", "methods_tables", "momentum", "momentum_tables")
)


@pytest.fixture
def results():
    return json.loads(COMMITTED.read_text())


def test_the_docs_show_the_committed_figures():
    done = benchmark("methods.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_the_docs_show_the_committed_figures_of_momentum():
    done = benchmark("momentum.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr
    committed = json.loads((ROOT / "benchmarks" / "results" / "momentum.json").read_text())
    assert committed["setting"] == json.loads(json.dumps(momentum.SETTING_HERE))


def test_the_best_lr_is_the_lowest_point_of_a_parabola():
    lrs = [2.0**k for k in (-4, -3, -2, -1)]
    valley = momentum_tables._valley(lrs, [(math.log2(lr) + 2.3) ** 2 for lr in lrs])
    assert math.log2(valley) == pytest.approx(-2.3)
    assert momentum_tables._valley(lrs, [1.0, 2.0, 3.0, 4.0]) == lrs[0]


@pytest.mark.parametrize("name", momentum.RUNS)
def test_all_ways_to_end_a_run_end_at_the_same_share_or_keep_the_lr(name):
    lr, alpha = momentum._schedules(name)
    effective = [schedules.effective_lr(lr(step), alpha(step)) for step in (momentum.LONG_WARMUP, momentum.LONG)]
    assert effective[0] == pytest.approx(19**0.5 if "linear" not in name else effective[0])
    share = momentum.LAST if "linear" not in name else 1 / 19**0.5
    assert lr(momentum.LONG) * schedules.inflation(alpha(momentum.LONG)) ** 0.5 == pytest.approx(share * 19**0.5)


def test_other_figures_are_noticed_and_written(tmp_path, results, capsys):
    results["runs"]["seeds/adamw/0"]["loss"] += 0.3
    other, page = tmp_path / "methods.json", tmp_path / "methods.md"
    other.write_text(json.dumps(results))
    page.write_text(methods.DOCS.read_text())
    assert tables.update_docs(page, other, check=True) == 1
    assert "does not show" in capsys.readouterr().err
    assert tables.update_docs(page, other, check=False) == 0
    assert tables.update_docs(page, other, check=True) == 0
    page.write_text("# Without markers\n")
    assert tables.update_docs(page, other, check=False) == 1


def test_the_committed_figures_are_of_this_benchmark_and_of_every_optimizer(results):
    assert results["setting"] == json.loads(json.dumps(methods.SETTING))
    assert {each.method for each in methods.CONTENDERS.values()} == set(METHODS)


def test_every_optimizer_trained(results):
    """Below what the frequencies of bytes give, on every seed that is reported."""
    for name in methods.CONTENDERS:
        for loss in tables._losses(results, "seeds", name):
            assert loss is not None
            assert loss < results["bytes_alone"]["one"]


def test_the_lr_is_the_best_of_its_grid_and_diverged_runs_are_none(results):
    grid = results["setting"]["contenders"]["adamw"]["lrs"]
    runs = results["runs"]
    for lr, loss in zip(grid, (None, 2.0, 1.5, None), strict=True):
        runs[f"grid/adamw/{lr:g}"]["loss"] = loss
    assert tables.chosen_lr(results, "adamw") == grid[2]
    assert ", 2 diverged" in next(line for line in tables.methods_table(results).splitlines() if "| adamw |" in line)
    for lr in grid:
        runs[f"grid/adamw/{lr:g}"]["loss"] = None
    with pytest.raises(SystemExit, match="adamw: no lr"):
        tables.chosen_lr(results, "adamw")


def test_the_interval_is_students():
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((1.8, 1.9, 2.0), "below"),
        ((2.2, 2.3, 2.4), "above"),
        ((1.0, 2.5, 2.2), "same"),  # differences too uneven
        ((2.05, 2.15, 2.25), "same"),  # even ones, but less than the seeds of AdamW differ
        ((None, 1.9, 2.0), "above"),
    ],
)
def test_told_apart_is_what_exceeds_interval_and_spread(results, losses, expected):
    for seed, loss in enumerate((2.0, 2.1, 2.2)):
        results["runs"][f"seeds/adamw/{seed}"]["loss"] = loss
    for seed, loss in enumerate(losses):
        results["runs"][f"seeds/muon/{seed}"]["loss"] = loss
    found = tables.verdicts(results, "seeds", ["adamw", "muon"])
    assert found == {"below": [], "above": [], "same": []} | {expected: ["muon"]}


def test_a_diverged_seed_is_last_and_said(results):
    results["runs"]["seeds/scion/1"]["loss"] = None
    rows = [line for line in tables.methods_table(results).splitlines() if line.startswith("| ")]
    assert rows[-1].startswith("| scion |")
    assert "1 of 3 diverged | diverged" in rows[-1]


def test_runs_of_another_setting_are_not_gone_on_with(tmp_path, results, capsys):
    out = tmp_path / "methods.json"
    out.write_text(json.dumps(results))
    assert methods._resumed(out)["runs"] == results["runs"]
    fewer, longer, changed = (copy.deepcopy(results) for _ in range(3))
    del fewer["setting"]["contenders"]["muon"]
    out.write_text(json.dumps(fewer))
    assert methods._resumed(out)["runs"] == results["runs"]
    longer["setting"]["steps"] += 1
    changed["setting"]["contenders"]["muon"]["lrs"][0] *= 2
    for other in (longer, changed):
        out.write_text(json.dumps(other))
        assert methods._resumed(out)["runs"] == {}
        assert "another setting" in capsys.readouterr().err


def test_seen_and_unseen_blocks_share_no_file():
    text = methods.read_text()
    assert text.held_out.shape == (methods.HELD_OUT, methods.BLOCK)
    seen = {bytes(block.tolist()) for block in text.train}
    shared = sum(bytes(block.tolist()) in seen for block in text.held_out)
    assert shared <= 2  # of spaces, or of a line that files share
    assert methods.read_text().sha256 == text.sha256


@pytest.mark.parametrize("name", ["adamw + AlphaDecay", "adamw, lr x 8 outside hidden", "scionc"])
def test_a_run_is_repeated_to_the_bit(name, monkeypatch, one_thread):
    pytest.importorskip("transformers")
    monkeypatch.setattr(methods, "SETTLED", 3)
    monkeypatch.setattr(methods, "WIDTH", 32)
    blocks = torch.arange(40 * 64).view(40, 64) % 251
    text = methods.Text(blocks[:32], blocks[32:], "")
    contender = methods.CONTENDERS[name]
    given = {"lr": contender.lrs[0], "steps": 6, "warmup": 1, "every": 3}
    first, again, other = (methods.train(text, contender, seed, **given) for seed in (3, 3, 4))
    assert first == again
    assert first["loss"] != other["loss"]
    assert list(first["rms"]) == ["0", "3", "6"]
    assert len(first["change"]) == 14


# What the page says of the second part


def test_adamws_norms_fall_at_the_end_and_adamcs_do_not(results):
    decay = results["setting"]["decay"]
    assert decay["lr"] * decay["strong"] * decay["steps"] >= 5
    first, last = decay["settled"], decay["steps"]
    for seed in methods.SEEDS:
        rms = {name: results["runs"][f"strong/{name}/{seed}"]["rms"] for name in ("adamw", "adamc")}
        assert rms["adamw"][str(last)] < 0.92 * rms["adamw"][str(first)]
        assert rms["adamc"][str(last)] > rms["adamc"][str(first)]
        assert rms["adamc"][str(last)] > 1.3 * rms["adamw"][str(last)]
    predicted = {name: tables.predict(results, name, decay["strong"], 0.02) for name in ("adamw", "adamc")}
    assert predicted["adamw"].at(last).rms < 0.7 * predicted["adamw"].at(first).rms
    assert predicted["adamc"].at(last).rms > predicted["adamc"].at(first).rms


def test_with_usual_decay_there_is_nothing_to_see(results):
    adamw, adamc = (results["runs"][f"usual/{name}/0"]["rms"] for name in ("adamw", "adamc"))
    for step, rms in adamw.items():
        assert adamc[step] == pytest.approx(rms, rel=0.02)


def test_the_level_is_below_the_predicted_one(results):
    decay = results["setting"]["decay"]
    for part in ("strong", "usual"):
        for name in ("adamw", "adamc"):
            found = tables.predict(results, name, decay[part], 0.02)
            late = [(int(s), rms) for s, rms in results["runs"][f"{part}/{name}/0"]["rms"].items() if int(s) > 60]
            assert all(0.6 <= rms / found.at(step).rms <= 0.87 for step, rms in late)


@pytest.mark.parametrize("part", ["seeds", "strong"])
def test_renormalized_adamw_is_adamw_within_the_spread(results, part):
    assert tables.verdicts(results, part, ["renormalized-adamw"])["same"] == ["renormalized-adamw"]


def test_betas_move_adamcs_norm_little(results):
    runs, settled = results["runs"], results["setting"]["decay"]["settled"]
    found = [runs["strong/adamc/0"], *(run for key, run in runs.items() if key.startswith("betas/"))]
    means = [sum(rms for step, rms in run["rms"].items() if int(step) >= settled) for run in found]
    assert len(means) == len(methods.BETAS)
    assert max(means) / min(means) < 1.17
