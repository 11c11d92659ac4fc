"""Evaluation while a run trains: it is logged and shown, and the run is the one that it would be without."""

import os
import signal

import msgspec
import pytest
from command import invoke
from plain_run import FILES, same
from recipes import MODEL, tiny_recipe, write_recipe
from transformers import TrainerCallback

from specdiag import UsageError
from specdiag.dynamics.norm_log import load_norm_log
from specdiag.train.recipe import validated
from specdiag.train.runs.begin import begin
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.trajectories.metric_log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


class Report(TrainerCallback):
    """Stands for trackio and the like, which end with the training."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seen.append("begin")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen += ["eval"] if "eval_loss" in logs else []

    def on_train_end(self, args, state, control, **kwargs):
        self.seen.append("end")


@pytest.fixture
def recipe(text):
    """With dropout, whose random numbers an evaluation may not use up."""
    return tiny_recipe(text, model={**MODEL, "attention_dropout": 0.2}, norms_every=1, steps_total=6, eval_every=1)


def evaluations(run):
    return {e.step: e.value for e in read_log(run / "specdiag_log.jsonl") if e.metric == "eval_loss"}


def test_a_report_has_all_evaluations_and_changes_nothing_of_the_run(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, eval_every=0)
    plain = begin(recipe, tmp_path / "plain").train()
    run, report = begin(recipe, tmp_path / "reported"), Report()
    run.trainer.args.report_to = ["somewhere"]
    run.trainer.add_callback(report)
    result = run.train()
    assert report.seen == ["begin", "eval", "eval", "end"]
    assert (result.held_out_before, result.held_out_after) == (plain.held_out_before, plain.held_out_after)
    assert same(tmp_path / "reported" / "checkpoint-6", tmp_path / "plain" / "checkpoint-6")
    assert run.trainer.args.run_name == "reported"


def test_it_changes_nothing_of_the_run(recipe, tmp_path):
    seen = []
    begin(recipe, tmp_path / "often").train(on_log=lambda step, logs: seen.append((step, dict(logs))))
    begin(msgspec.structs.replace(recipe, eval_every=0), tmp_path / "never").train()
    assert same(tmp_path / "often" / "checkpoint-6", tmp_path / "never" / "checkpoint-6")
    often, never = (load_norm_log(tmp_path / name) for name in ("often", "never"))
    assert often.rows == never.rows
    found = evaluations(tmp_path / "often")
    assert sorted(found) == [0, 1, 2, 3, 4, 5, 6]
    assert len(set(found.values())) == 7
    assert [(step, logs["eval_loss"]) for step, logs in seen if "loss" not in logs] == list(found.items())[1:-1]
    assert evaluations(tmp_path / "never") == {step: found[step] for step in (0, 6)}


def test_a_resumed_run_is_the_uninterrupted_one(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, eval_every=2, decay="alphadecay", alphadecay={"every": 2})
    begin(recipe, tmp_path / "whole").train()
    cut = begin(recipe, tmp_path / "cut")
    result = cut.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
    assert result.step in (3, 4)
    prepare(Request(source=tmp_path / "cut")).train()
    assert same(tmp_path / "cut" / "checkpoint-6", tmp_path / "whole" / "checkpoint-6", FILES)
    whole, cut = (evaluations(tmp_path / name) for name in ("whole", "cut"))
    assert sorted(whole) == [0, 2, 4, 6]
    assert whole == {step: cut[step] for step in whole}


def test_it_may_be_more_frequent_in_a_run_that_goes_on(recipe, tmp_path):
    begin(msgspec.structs.replace(recipe, eval_every=0), tmp_path / "run").train()
    run = prepare(Request(source=tmp_path / "run", extend=3, eval_every=1))
    assert run.config.recipe.eval_every == 1
    run.train()
    assert sorted(evaluations(tmp_path / "run")) == [0, 6, 7, 8, 9]
    assert prepare(Request(source=tmp_path / "run", extend=1)).config.recipe.eval_every == 1


def test_less_than_no_steps_is_refused(recipe):
    with pytest.raises(UsageError, match="'eval_every' is -1: give a number of steps, or 0 for the ends alone"):
        validated(msgspec.to_builtins(msgspec.structs.replace(recipe, eval_every=-1)))


def test_the_command_line_shows_it(recipe, tmp_path):
    written = write_recipe(msgspec.structs.replace(recipe, eval_every=0), tmp_path / "tiny.toml")
    result = invoke("train", written, "--eval-every", "4", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    value = evaluations(tmp_path / "run")[4]
    assert f"step 4/6: held-out loss {value:.4f}" in result.stderr
