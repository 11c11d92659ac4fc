"""The study of docs/study.md: its order, its arms, its statistics, and runs that are stopped and continued."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from command import benchmark
from scipy.stats import t

from specdiag.views.plan_sentences import STUDY

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
study, design, order, runs, statistics, tables, answers = (
    importlib.import_module(name)
    for name in (
        "study",
        "study_design",
        "study_order",
        "study_run",
        "study_statistics",
        "study_tables",
        "study_answer",
    )
)


def test_the_docs_show_the_committed_figures():
    done = benchmark("study.py", "--docs", "--check")
    assert done.returncode == 0, done.stderr


def test_recommend_says_what_the_study_found():
    made = json.loads((ROOT / "benchmarks" / "results" / "study.json").read_text())["runs"]
    losses = {key: math.inf if each["loss"] is None else each["loss"] for key, each in made.items()}
    found = {size: answers.hypotheses(losses, size) for size in design.HEADLINE_SIZES}
    sizes = [size for size, each in found.items() if {"H1", "H2", "H4"} <= set(each)]
    weights = {each["parameters"] for each in made.values() if each["cell"]["size"] in sizes}
    assert [f"{n / 1e6:.2f} M" for n in sorted(weights)] == re.findall(r"[\d.]+ M", STUDY)
    assert "better" not in [found[size][name].verdict for size in sizes for name in ("H1", "H2", "H4")]


# Order


def made(loss, *, explore=False, size="0.3m"):
    """All runs that the study makes if `loss` is what a cell ends with, in order."""
    known, cells = {}, []
    while due := order.due(size, known, explore=explore):
        cells.append(due[0])
        known[due[0].key] = loss(due[0])
    return cells


def test_lr_then_base_then_all_arms_of_a_seed():
    def loss(cell):
        return abs(math.log2(cell.lr / 4e-3)) + abs(
            math.log2(max(cell.total, 0.1) / (4 if cell.arm == "uniform" else 2))
        )

    cells = made(loss)
    assert len({cell.key for cell in cells}) == len(cells) == 43
    tests = [cell for cell in cells if cell.seed < 100]
    assert [cell.seed for cell in tests] == [seed for seed in range(5) for _ in design.HEADLINE]
    assert {cell.lr for cell in tests} == {4e-3}
    assert {cell.arm: cell.total for cell in tests} == {
        "uniform": 4, "alphadecay": 2, "preserved": 4, "null": 4, "reversed": 4,
    }  # fmt: skip
    assert cells.index(tests[0]) == 18


def test_a_grid_grows_where_its_edge_is_best_and_not_for_ever():
    cells = made(lambda cell: -cell.lr - cell.total)
    assert max(cell.lr for cell in cells) == 8e-3 * 2**design.MOST_EXTENSIONS
    assert max(cell.total for cell in cells) == 8 * 2**design.MOST_EXTENSIONS
    assert min(cell.total for cell in cells) == 1


def test_a_run_that_diverged_is_never_chosen():
    def loss(cell):
        return math.inf if cell.lr > 3e-3 else abs(math.log2(cell.lr / 2e-3)) + abs(math.log2(cell.total / 2))

    assert {cell.lr for cell in made(loss) if cell.seed < 100} == {2e-3}


def test_no_decay_has_none_and_few_seeds():
    cells = made(lambda cell: abs(math.log2(max(cell.total, 0.1) / 2)), explore=True)
    assert [(cell.total, cell.seed) for cell in cells if cell.arm == "none"] == [(0.0, 0), (0.0, 1), (0.0, 2)]
    assert {cell.arm for cell in cells} == set(design.ARMS)


# Statistics


def test_the_interval_is_students_and_its_power_that_of_simulated_seeds():
    values = (-0.011, -0.004, -0.009, -0.006, -0.01)
    found = statistics.interval(values, 0.05 / 8)
    error = torch.tensor(values, dtype=torch.float64).std().item() / 5**0.5
    assert found.half == pytest.approx(t.ppf(1 - 0.05 / 16, 4) * error)
    drawn = torch.randn(200_000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn * error * 5**0.5 + found.seen
    above = drawn.mean(1) - t.ppf(1 - 0.05 / 16, 4) * drawn.std(1) / 5**0.5 > 0
    assert above.double().mean().item() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((-0.02, -0.021, -0.022, -0.02, -0.021), "better"),
        ((0.02, 0.021, 0.022, 0.02, 0.021), "worse"),
        ((0.001, -0.001, 0.0, 0.001, -0.001), "no difference of 0.01"),
        ((0.02, -0.02, 0.01, -0.01, 0.0), "undecided"),
    ],
)
def test_the_verdict_is_the_place_of_the_interval(values, verdict):
    assert statistics.interval(values, 0.05 / 8).verdict == verdict


def test_one_seed_decides_nothing():
    assert statistics.interval((-1.0,), 0.05).verdict == "undecided"


def test_shape_explains_all_or_nothing():
    shapes = {"a": 1, "b": 1, "c": 2, "d": 2}
    assert statistics.share_of_shape({"a": [2.0], "b": [2.0], "c": [3.0], "d": [3.0]}, shapes) == 1
    assert statistics.share_of_shape({"a": [2.0], "b": [3.0], "c": [3.0], "d": [2.0]}, shapes) == 0


# Runs


@pytest.fixture
def task(tmp_path, monkeypatch):
    config = {**design._llama(64, 128), "num_hidden_layers": 1}
    size = design.Size(config, 16, 4, 2, 0.02, (4e-3,))
    monkeypatch.setitem(design.SIZES, "tiny", size)
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(6000)))
    task = runs.prepare("tiny", (str(text),), tmp_path / "states", torch.device("cpu"))
    return replace(task, steps=8)


def cell(arm, total=2.0):
    return order.Cell("tiny", arm, 4e-3, total, 0)


def test_cost_needs_no_data_and_counts_every_forward_pass_of_a_step(task, monkeypatch):
    """Data of a GPU's size take hours to load, and a step of theirs many passes."""
    outline = runs.outline("tiny", torch.device("cpu"))
    assert (outline.n_parameters, outline.size) == (task.n_parameters, task.size)
    assert len(outline.train) == outline.size.micro == outline.size.batch / 2
    ticks = iter(range(0, 10_000, 9))
    monkeypatch.setattr(study.time, "process_time", lambda: next(ticks))
    said = study.cost(replace(outline, steps=100), {})
    assert f"{task.n_parameters:,} weights, 100 steps, {2 * 27 * 100 / 3600:.2f} h a run" in said


def test_compiled_training_compiles_the_model_that_is_measured(task, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(runs.torch, "compile", lambda model: compile_(model, backend="eager"))
    plain, compiled = (runs.Training(cell("uniform"), replace(task, compiled=on)) for on in (False, True))
    assert compiled._trained is not compiled.model
    assert [plain.step() for _ in range(3)] == pytest.approx([compiled.step() for _ in range(3)], rel=1e-5)
    assert compiled.held_out_loss() == pytest.approx(plain.held_out_loss(), rel=1e-5)


def test_a_stopped_run_ends_as_an_uninterrupted_one(task, tmp_path):
    whole = runs.run(cell("preserved"), task, tmp_path / "a.pt", lambda: False)
    asked = 0

    def is_third():
        nonlocal asked
        asked += 1
        return asked >= 3

    with pytest.raises(runs.Stopped):
        runs.run(cell("preserved"), task, tmp_path / "b.pt", is_third)
    assert (tmp_path / "b.pt").exists()
    continued = runs.run(cell("preserved"), task, tmp_path / "b.pt", lambda: False)
    assert {k: v for k, v in continued.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("arm", design.ARMS)
def test_every_arm_trains_and_equal_totals_are_equal(task, arm):
    training = runs.Training(cell(arm, 0.0 if arm == "none" else 2.0), task)
    losses = [training.step() for _ in range(3)]
    assert all(map(math.isfinite, losses))
    ratios = next((rule.ratios for rule in training.rules if hasattr(rule, "ratios")), {})
    if arm in ("preserved", "null", "reversed", "square", "layer", "llr-alphadecay", "preserved-linear"):
        sizes = {name: p.numel() for name, p in training.model.named_parameters() if name in ratios}
        assert len(sizes) == 7
        assert sum(ratios[name] * n for name, n in sizes.items()) == pytest.approx(sum(sizes.values()))
        assert len(set(ratios.values())) > 1 or arm == "layer"
    if arm == "alphadecay":
        assert (min(ratios.values()), max(ratios.values())) == pytest.approx((design.S1, design.S2))
    if arm == "none":
        assert training.base == 0


def test_the_null_plan_knows_shapes_alone_and_the_reverse_is_one(task):
    null, measured, reverse = (runs.Training(cell(arm), task) for arm in ("null", "preserved", "reversed"))
    for training in (null, measured, reverse):
        training.step()
    ratios = null.rules[0].ratios
    assert len({round(r, 9) for name, r in ratios.items() if ".mlp." in name}) == 1
    assert len({round(r, 9) for name, r in ratios.items() if ".self_attn." in name}) == 1
    assert min(r for n, r in ratios.items() if ".mlp." in n) > max(r for n, r in ratios.items() if ".self_attn." in n)
    there, back = measured.rules[0].ratios, reverse.rules[0].ratios
    assert sorted(there, key=there.__getitem__) == sorted(back, key=back.__getitem__)[::-1]


def test_the_sum_of_lr_and_decay_is_the_stated_one(task):
    training = runs.Training(cell("uniform", 3.0), task)
    total = 0.0
    for _ in range(task.steps):
        group = training._optimizer.param_groups[0]
        total += group["lr"] * group["weight_decay"]
        training.step()
    assert total == pytest.approx(3.0)


def test_arms_of_a_seed_see_the_same_data_and_other_seeds_do_not(task):
    first, second, other = (
        runs.Training(c, task) for c in (cell("uniform"), cell("preserved"), replace(cell("uniform"), seed=1))
    )
    assert first._batch().equal(second._batch())
    assert not first._batch().equal(other._batch())
    assert all(a.equal(b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


def test_two_processes_make_no_run_twice_and_results_are_kept(task, tmp_path, capsys):
    out, states = tmp_path / "study.json", tmp_path / "states"
    cells = [cell("uniform"), cell("preserved")]
    with study._lock(states / "tiny_uniform_lr_0.004_total_2_seed_0.lock") as mine:
        assert mine
        assert study._make_one(cells, task, out, states, math.inf)
    assert list(study.load(out)) == [cells[1].key]
    assert study._make_one(cells, task, out, states, math.inf)
    assert set(study.load(out)) == {c.key for c in cells}
    entry = json.loads(out.read_text())["runs"][cells[0].key]
    assert entry["machine"]
    assert entry["data"] == task.digest
    assert set(entry["looks"]) == {"0", "1", "2", "4", "6", "8"}
    assert not study._make_one(cells, task, out, states, math.inf)


def test_other_data_is_refused(task):
    entry = {"cell": {"size": "tiny"}, "data": "another", "loss": 1.0}
    with pytest.raises(SystemExit, match="of data another"):
        study.check_data({"k": entry}, {"tiny": task})


def invented(size, gain):
    """All losses of the headline at a size, where arms differ by these gains, and a little by seed."""
    known = {}
    while due := order.due(size, known, explore=False):
        c = due[0]
        known[c.key] = (
            1.5 + 0.1 * abs(math.log2(c.total / 4)) + gain.get(c.arm, 0.0) + 0.0001 * (c.seed % 3) * len(c.arm)
        )
    return known


def test_the_answer_names_the_sizes_at_which_it_holds():
    helped = {"preserved": -0.03, "alphadecay": -0.02, "null": -0.01, "reversed": 0.02}
    losses = invented("0.3m", helped)
    text = answers.answer(losses, ("0.3m", "1m"))
    assert text.startswith(
        "**AlphaDecay as published helps at 0.3m. The exponents help at 0.3m. "
        "The runs of the headline are incomplete at 1m.**"
    )
    assert "- H4, 0.3m: AlphaDecay at the same total decay ends below its reverse: -0.0499" in text
    losses |= invented("1m", {"preserved": -0.03, "null": -0.03})
    assert answers.answer(losses, ("0.3m", "1m")).startswith(
        "**AlphaDecay as published helps at 0.3m. The exponents help at 0.3m.**"
    )


def test_the_answer_says_that_nothing_is_shown():
    text = answers.answer(invented("0.3m", {"alphadecay": 0.05}), ("0.3m",))
    assert text.startswith("**AlphaDecay as published is not shown to help at 0.3m. The exponents are not shown")
    assert "- H1, 0.3m: AlphaDecay as published ends above the best uniform decay: +0.05" in text
    assert "differ by less than 0.01 nats a token" in text
    assert answers.answer({}, ("0.3m",)) == "**The runs of the headline are incomplete at 0.3m.**"


def test_the_page_says_what_invented_runs_hold(tmp_path):
    known, entries = {}, {}
    gain = {"preserved": -0.03, "alphadecay": -0.02, "null": -0.001, "reversed": 0.02}
    while due := order.due("0.3m", known, explore=False):
        c = due[0]
        known[c.key] = (
            1.5 + 0.1 * abs(math.log2(c.total / 4)) + 0.01 * c.seed + gain.get(c.arm, 0.0) * (1 + 0.01 * c.seed)
        )
        entries[c.key] = {
            "cell": {"size": c.size, "arm": c.arm, "lr": c.lr, "total": c.total, "seed": c.seed}, "loss": known[c.key],
            "parameters": 351440, "steps": 3433, "seconds": 360.0,
            "matrices": {f"model.layers.{i}.{m}.weight": [2.0 + i, 1.8, 0.1, 1.0] for i in range(2) for m in ("self_attn.q_proj", "mlp.up_proj")},
        }  # fmt: skip
    text = tables.summary(entries, ["0.3m"])
    answers = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| H")}
    assert "**better**" in answers["H1"]
    assert "**better**" in answers["H2"]
    assert "**better**" in answers["H3"]
    assert fmean(known[k] for k in known if "/preserved/" in k) < fmean(known[k] for k in known if "/reversed/" in k)
    assert "**4: " in text
    assert "explains 0% of the variance" in text
    (one,) = (key for key in entries if "/uniform/" in key and "total 2/" in key and key.endswith("seed 101"))
    del entries[one]
    assert "(1 of 2 seeds)" not in text
    assert "(1 of 2 seeds)" in tables.summary(entries, ["0.3m"])


def test_no_interval_from_two_seeds_of_an_arm_that_has_five():
    known = invented("0.3m", {"preserved": -0.03})
    two = {key: {"loss": loss} for key, loss in known.items() if key[-1] in "01"}
    assert not tables.differences(two, "0.3m")
    assert tables.differences({key: {"loss": loss} for key, loss in known.items()}, "0.3m").keys() >= {"preserved"}
