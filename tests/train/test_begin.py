"""Runs that begin with a recipe, runs beside them, and grids of runs."""

import json
import math
import os
import signal

import msgspec
import pytest
import torch
from command import invoke
from plain_run import same
from recipes import MODEL, ranked, tiny_recipe, write_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import specdiag
from specdiag import UsageError, load_report
from specdiag.dynamics.norm_log import has_norm_log, load_norm_log
from specdiag.dynamics.run_check import check_run
from specdiag.train.runs.begin import begin
from specdiag.train.runs.changes import changed, parse_assignments
from specdiag.train.runs.config import load_config
from specdiag.train.runs.leaderboard import rank
from specdiag.train.runs.outcome import load_outcome, spike_share
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.rival import prepare_rival
from specdiag.train.runs.sweep import folder_name, parse_grid, prepared, tabulate
from specdiag.train.sampling import sample
from specdiag.train.tasks.glue import GLUE
from specdiag.trajectories.decay_log import load_decay_log
from specdiag.trajectories.metric_log import read_log

DOWN = "model.layers.0.mlp.down_proj.weight"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(text):
    return tiny_recipe(text)


def test_a_run_that_begins_is_written_whole_and_loads_in_transformers(recipe, tmp_path):
    run = begin(recipe, tmp_path / "run")
    result = run.train()
    assert (result.step, result.interrupted, result.tokens) == (4, False, 4 * 4 * 32)
    assert result.held_out_after["loss"] < result.held_out_before["loss"]
    last = tmp_path / "run" / "checkpoint-4"
    assert AutoModelForCausalLM.from_pretrained(last).config.vocab_size == 256
    words = "def f(x):\n    return 'ü'"
    assert AutoTokenizer.from_pretrained(last)(words)["input_ids"] == list(words.encode())
    outcome = load_outcome(tmp_path / "run")
    assert (outcome.step, outcome.held_out["loss"]) == (4, result.held_out_after["loss"])
    assert load_config(tmp_path / "run").recipe.title == "Tiny"
    assert sample(run.trainer.model, None, "def", tokens=5) == sample(run.trainer.model, None, "def", tokens=5)


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        *((name, "alphadecay") for name in ("adamc", "muon", "scionc", "awd")),
        *(("adamw", rule) for rule in ("awd", "adadecay", "module-adadecay", "alphalr")),
    ],
)
def test_interrupted_is_uninterrupted_with_every_optimizer_and_rule(recipe, tmp_path, optimizer, rule):
    settings = {name: v for name, v in recipe.settings.items() if name != "learning_rate"}
    options = {"module-adadecay": {"every": 1}, "alphalr": {"every": 2, "until": 3, "blend": 3}}.get(rule, {})
    recipe = msgspec.structs.replace(recipe, optimizer=optimizer, decay=rule, alphadecay=options, settings=settings)
    begin(recipe, tmp_path / "whole").train()
    cut = begin(recipe, tmp_path / "cut")
    cut.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
    go_on = prepare(Request(source=tmp_path / "cut"))
    assert go_on.step in (2, 3)
    go_on.train()
    assert same(tmp_path / "cut" / "checkpoint-4", tmp_path / "whole" / "checkpoint-4")


def test_a_run_without_a_checkpoint_starts_over_as_it_was(recipe, tmp_path):
    begin(recipe, tmp_path / "whole").train()
    begin(recipe, tmp_path / "run")
    again = prepare(Request(source=tmp_path / "run"))
    assert "has no checkpoint yet: it starts over" in again.notes[0]
    again.train()
    assert same(tmp_path / "run" / "checkpoint-4", tmp_path / "whole" / "checkpoint-4")
    begin(recipe, tmp_path / "other")
    with pytest.raises(UsageError, match="starts over as it was configured"):
        prepare(Request(source=tmp_path / "other", extend=2))


def test_a_resumed_run_of_a_grid_reads_the_tokens_that_all_share(recipe, tmp_path):
    begin(recipe, tmp_path / "run", cache=tmp_path).train()
    prepare(Request(source=tmp_path / "run", extend=2)).train()
    (shared,) = tmp_path.rglob("tokens-*.cache")
    assert shared.parent == tmp_path


@pytest.mark.parametrize("rule", ["awd", "adadecay", "module-adadecay", "alphadecay", "none"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_every_rule_changes_what_decays_and_nothing_else_in_the_first_step(recipe, tmp_path, rule, optimizer):
    recipe = msgspec.structs.replace(recipe, optimizer=optimizer, steps_total=1)
    options = {"alphadecay": {"measure_first": True}, "module-adadecay": {"every": 1}}.get(rule, {})
    begin(recipe, tmp_path / "uniform").train()
    begin(msgspec.structs.replace(recipe, decay=rule, alphadecay=options), tmp_path / rule).train()
    uniform, other = (load_file(tmp_path / r / "checkpoint-1" / "model.safetensors") for r in ("uniform", rule))
    moved = {name for name in uniform if not torch.equal(uniform[name], other[name])}
    assert DOWN in moved
    assert not any("norm" in name or "embed" in name for name in moved)


def test_learning_rates_follow_the_weights_and_are_logged(recipe, tmp_path):
    run = begin(msgspec.structs.replace(recipe, decay="alphalr", alphadecay={"blend": 1}), tmp_path / "run")
    assert any("effect on the loss was not tested here" in note for note in run.notes)
    run.train()
    held = {(e.metric, e.module): e.value for e in read_log(tmp_path / "run" / "specdiag_log.jsonl")}
    assert held["lr_ratio", "lm_head.weight"] == held["lr_ratio", "model.embed_tokens.weight"] == 5
    assert 1 <= held["lr_ratio", DOWN] <= 5
    assert ("ratio", DOWN) not in held
    state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert state["AlphaLRCallback"]["args"]["until"] == 0  # a fifth of four steps: only before the first
    begin(recipe, tmp_path / "uniform").train()
    assert not same(tmp_path / "run" / "checkpoint-4", tmp_path / "uniform" / "checkpoint-4")


def test_the_cost_and_the_ratios_of_a_rule_are_kept(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, decay="alphadecay", alphadecay={"every": 2})
    seen = []
    result = begin(recipe, tmp_path / "run").train(on_log=lambda step, logs: seen.append((step, dict(logs))))
    assert 0 < result.decay_seconds < result.seconds
    assert seen[-1][0] == 4
    assert {"loss", "learning_rate", "alpha", "ratio_min", "ratio_max"} <= set(seen[-1][1])
    log = read_log(tmp_path / "run" / "specdiag_log.jsonl")
    held = {(e.metric, e.step): e.value for e in log if e.module == DOWN}
    assert {metric for metric, _ in held} == {"weight_decay", "ratio", "alpha", "rho"}
    report = specdiag.analyze(tmp_path / "run" / "checkpoint-4")
    null = report[DOWN].alpha_null
    assert all(
        rho == pytest.approx((held["alpha", step] - 1) / (null - 1)) for (m, step), rho in held.items() if m == "rho"
    )
    found = load_decay_log(tmp_path / "run")
    assert found.series["mlp", "down"] == [[(s, v) for (m, s), v in held.items() if m == "weight_decay"]]
    figure = specdiag.plot.decay_run(found)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert list(lines["down"].get_ydata()) == [v for (m, _), v in held.items() if m == "weight_decay"] + [
        held["weight_decay", max(s for m, s in held if m == "weight_decay")]
    ]


def test_norms_are_logged_for_simulate_and_go_on_where_a_run_does(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, norms_every=1)
    begin(recipe, tmp_path / "whole").train()
    cut = begin(recipe, tmp_path / "cut")
    cut.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
    prepare(Request(source=tmp_path / "cut")).train()
    whole, other = (load_norm_log(tmp_path / name) for name in ("whole", "cut"))
    assert set(whole.rows) == set(other.rows)
    found = check_run(whole)
    assert {module.optimizer for module in found.modules} == {"adamw"}
    assert found.modules[0].last_step == 4
    begin(msgspec.structs.replace(recipe, norms_every=0), tmp_path / "without").train()
    assert not has_norm_log(tmp_path / "without")
    assert same(tmp_path / "without" / "checkpoint-4", tmp_path / "whole" / "checkpoint-4")


def test_a_run_that_keeps_one_checkpoint_keeps_its_tokenizer(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, settings={**recipe.settings, "save_total_limit": 1, "save_steps": 1})
    begin(recipe, tmp_path / "run").train()
    prepare(Request(source=tmp_path / "run", extend=3)).train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-7"]
    assert AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-7")("ab")["input_ids"] == [97, 98]


def test_what_is_prepared_and_not_trained_changes_no_run(recipe, tmp_path):
    begin(recipe, tmp_path / "run").train()
    before = load_config(tmp_path / "run")
    assert prepare(Request(source=tmp_path / "run", extend=3)).steps_total == 7
    assert load_config(tmp_path / "run") == before


def test_a_misspelt_name_of_the_model_is_refused(recipe, tmp_path):
    for wrong, words in (
        ({"hiden_size": 64}, "a llama model has no 'hiden_size' in its configuration: did you mean 'hidden_size'?"),
        ({"hidden_size": 30}, "transformers cannot make a llama model of the recipe"),
    ):
        with pytest.raises(UsageError, match=words):
            begin(msgspec.structs.replace(recipe, model=MODEL | wrong), tmp_path / "run")


def test_beside_a_run_stands_the_same_with_another_decay(recipe, tmp_path):
    run = begin(msgspec.structs.replace(recipe, decay="alphadecay", alphadecay={"s2": 5.0}), tmp_path / "run")
    run.train()
    other = prepare_rival(run, "uniform", tmp_path / "run-uniform")
    assert other.config.recipe == msgspec.structs.replace(run.config.recipe, decay="uniform", alphadecay={})
    other.train()
    begin(recipe, tmp_path / "plain").train()
    assert same(tmp_path / "run-uniform" / "checkpoint-4", tmp_path / "plain" / "checkpoint-4")
    rows, said = rank([tmp_path / "run-uniform", tmp_path / "run"])
    assert {row.run: row.improvement for row in rows}["run-uniform"] == 0
    assert [row.loss for row in rows] == sorted(row.loss for row in rows)
    assert said == []
    goes_on = prepare(Request(source=tmp_path / "run" / "checkpoint-2", out=tmp_path / "on", decay="alphadecay"))
    goes_on.train()
    twin = prepare_rival(goes_on, "uniform", tmp_path / "on-uniform")
    assert (twin.step, twin.steps_total, twin.config.fingerprint) == (2, 4, goes_on.config.fingerprint)
    with pytest.raises(UsageError, match="holds a run with other settings"):
        prepare_rival(run, "none", tmp_path / "run-uniform")
    longer = prepare(Request(source=tmp_path / "run", extend=1))
    assert (prepare_rival(longer, "uniform", tmp_path / "run-uniform").step, longer.steps_total) == (4, 5)


def test_options_change_a_recipe_by_name(recipe):
    made = changed(
        recipe,
        parse_assignments(
            ["bf16=true", "model.num_hidden_layers=3", "lr=0.5", "decay=alphadecay", "alphadecay.s2=5.0"]
        ),
    )
    assert (made.settings["bf16"], made.settings["learning_rate"]) == (True, 0.5)
    assert (made.model["num_hidden_layers"], made.decay, made.alphadecay) == (3, "alphadecay", {"s2": 5.0})
    assert changed(made, {"decay": "uniform"}).alphadecay == {}
    for wrong, words in (
        ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
        ({"decay": "alphadekay"}, "alphadekay"),
        ({"block_size": "many"}, "block_size"),
    ):
        with pytest.raises(UsageError, match=words):
            changed(recipe, wrong)
    with pytest.raises(UsageError, match="'bf16' is not NAME=VALUE"):
        parse_assignments(["bf16"])


def test_grids():
    points = parse_grid("decay=none,uniform weight_decay=0.1,1 seed=0,1")
    assert len(points) == 2 + 4
    assert folder_name(points[-1]) == "decay=uniform_weight_decay=1_seed=1"
    for wrong in ("", "decay", "decay=", "decay=a decay=b"):
        with pytest.raises(UsageError):
            parse_grid(wrong)


def test_a_grid_of_base_decays():
    runs = [
        ((("decay", "none"), ("weight_decay", "1")), ranked("causal-lm", 2.0), 0.5),
        ((("decay", "uniform"), ("weight_decay", "1"), ("seed", "0")), ranked("causal-lm", 1.0), 0.5),
        ((("decay", "uniform"), ("weight_decay", "1"), ("seed", "1")), ranked("causal-lm", 2.0), 0.7),
        ((("decay", "uniform"), ("weight_decay", "2")), ranked("causal-lm", 1.25), None),
    ]
    grid = tabulate(runs)
    assert (grid.measure, grid.methods, grid.averages) == ("perplexity", ("none", "uniform"), {})
    assert grid.columns == ("no decay", "decay 1", "decay 2")
    cell = grid.cells["uniform"]["decay 1"]
    assert cell.scores == (math.exp(1), math.exp(2))
    assert (cell.balance, cell.hours) == (pytest.approx(0.6), 1.0)
    assert grid.best("uniform")[0] == "decay 2"


def test_a_grid_of_tasks_is_averaged_where_it_has_all_of_glue():
    def of(task, value):
        return ranked(f"glue/{task}", 1.0, **dict.fromkeys(GLUE[task].metrics, value))

    def point(task, rule):
        return (("task", f"glue/{task}"), ("decay", rule))

    runs = [(point(task, "uniform"), of(task, 0.5), None) for task in GLUE]
    runs += [(point(task, "alphadecay"), of(task, 0.75), None) for task in ("cola", "rte")]
    grid = tabulate(runs)
    assert (grid.measure, grid.averages) == ("score", {"uniform": pytest.approx(0.5)})
    assert grid.columns == tuple(f"glue/{task}" for task in GLUE)
    assert grid.best("alphadecay")[1].mean == pytest.approx(0.75)


def test_tasks_without_a_common_measure_have_no_grid(recipe, tmp_path):
    with pytest.raises(UsageError, match="judged by perplexity and by score have no table in common"):
        prepared(recipe, parse_grid("task=causal-lm,glue/rte"), tmp_path)


def test_spikes():
    flat = [1.0, 1.1] * 20
    assert spike_share(flat) == 0
    assert spike_share([*flat, 9.0, *flat]) == 1 / 81
    assert spike_share(flat[:19]) is None


def test_from_the_command_line(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(recipe, tmp_path / "tiny.toml")
    first = invoke(
        "train", "tiny.toml", "--decay", "alphadecay", "--every", "2", "--compare", "uniform", "--sample", "import"
    )
    assert first.exit_code == 0, first.output
    for words in (
        "Tiny, 4 steps, in", "learning_rate 0.01", "Weight decay (alphadecay) at step 0", "mean alpha",
        "Exponents and ratios took", "Runs, the best first", "One seed: a difference says something only", "import",
    ):  # fmt: skip
        assert words in first.output, words
    assert (tmp_path / "tiny-uniform" / "checkpoint-4").is_dir()
    ranked = invoke("compare", "tiny-uniform", "tiny", "-f", "json")
    assert {row["run"] for row in json.loads(ranked.stdout)} == {"tiny", "tiny-uniform"}
    grid = "decay=none,uniform weight_decay=0.1,0.5"
    sweep = ["train", "tiny.toml", "--sweep", grid, "-o", "grid", "--steps-total", "2"]
    whole = invoke(*sweep)
    assert whole.exit_code == 0, whole.output
    for words in ("decay 0.1", "decay 0.5", "no decay", "Best against best: uniform (decay "):
        assert words in whole.output, words
    assert load_report(tmp_path / "grid" / "decay=none_weight_decay=0.1" / "final-2.specdiag.json").records
    assert len(list((tmp_path / "grid").glob("tokens-*.cache"))) == 1
    assert invoke("plot", "decay", "tiny", "-o", "decay.png").exit_code == 0
    again = invoke(*sweep)
    assert "3/3: 'decay=uniform_weight_decay=0.5' is finished" in again.stderr
    for arguments, code, words in (
        (["train"], 2, "name a CONFIG.toml or a preset (gpt2-small"),
        (["train", "llama-60n"], 2, "did you mean 'llama-60m'"),
        (["train", "tiny"], 2, "'specdiag train tiny --resume' goes on with it"),
        (["train", "tiny.toml"], 2, "is a run already"),
        (["train", "tiny.toml", "-o", "new", "--steps-total", "1", "--optimizer", "adam-w"], 2, "adamw"),
        (["train", "--resume", "tiny", "--sweep", "seed=1"], 2, "--sweep is for a run that begins"),
        (["train", "tiny.toml", "--extend", "1"], 2, "--extend is for a run that goes on"),
        (["train", "absent.toml"], 3, "absent.toml"),
        (["train", "tiny.toml", "-o", "new", "--set", "report_to=paper"], 2, "does not report to 'paper'; choose from"),
        (["train", "tiny.toml", "-o", "new", "--set", "report_to=swanlab"], 2, "pip install swanlab"),
    ):
        answer = invoke(*arguments)
        assert (answer.exit_code, words in answer.stderr) == (code, True), answer.output
