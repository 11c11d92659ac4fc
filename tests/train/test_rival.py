"""A run and its rival: equal in all but the decay, or said to be hard to compare."""

import json
import os
import shutil
import signal

import msgspec
import pytest
from command import invoke
from plain_run import same
from recipes import MODEL, tiny_recipe

from specdiag import SourceError, UsageError
from specdiag.train.runs.begin import begin
from specdiag.train.runs.config import CONFIG, load_config
from specdiag.train.runs.leaderboard import is_finished, rank
from specdiag.train.runs.outcome import load_outcome
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.rival import prepare_rival, reserve_rival

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(text):
    return tiny_recipe(text, {"lr_scheduler_type": "cosine"}, norms_every=0)


def rates(run):
    """The learning rate at each step that was logged."""
    (last,) = sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[-1:]
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}


def test_the_rival_of_an_extended_run_is_its_continuation_to_the_bit(recipe, tmp_path):
    begin(recipe, tmp_path / "mine").train()
    run = prepare(Request(source=tmp_path / "mine", extend=3, settings={"save_total_limit": 1}))
    reserve_rival(run, "uniform", tmp_path / "twin")
    reserve_rival(run, "none", tmp_path / "other")
    run.train()
    assert not (tmp_path / "mine" / "checkpoint-4").exists()
    for rule, name in (("uniform", "twin"), ("none", "other")):
        rival = prepare_rival(run, rule, tmp_path / name)
        assert (rival.step, rival.steps_total) == (4, 7)
        rival.train()
    assert same(tmp_path / "twin" / "checkpoint-7", tmp_path / "mine" / "checkpoint-7")
    assert not same(tmp_path / "other" / "checkpoint-7", tmp_path / "mine" / "checkpoint-7")
    assert rates(tmp_path / "other") == rates(tmp_path / "mine")
    assert rank([tmp_path / "other", tmp_path / "twin", tmp_path / "mine"])[1] == []
    mine, other = load_outcome(tmp_path / "mine"), load_outcome(tmp_path / "other")
    assert (other.tokens, other.held_out_before) == (mine.tokens, mine.held_out_before)


def test_the_command_gives_the_continuation_too(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(recipe, tmp_path / "mine").train()
    answer = invoke("train", "mine", "--resume", "--extend", "2", "--compare", "none")
    assert answer.exit_code == 0, answer.output
    assert "Hard to compare" not in answer.output
    assert rates(tmp_path / "mine-none") == rates(tmp_path / "mine")
    assert load_config(tmp_path / "mine-none").source == str(tmp_path / "mine" / "checkpoint-4")
    later = invoke("compare", "mine-none", "mine")
    assert (later.exit_code, "Hard to compare" in later.output) == (0, False), later.output


def test_runs_under_other_schedules_are_hard_to_compare(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(recipe, tmp_path / "mine").train()
    prepare(Request(source=tmp_path / "mine", extend=2)).train()
    begin(msgspec.structs.replace(recipe, steps_total=6, decay="none"), tmp_path / "whole").train()
    prepare(Request(source=tmp_path / "mine" / "checkpoint-2", out=tmp_path / "early", steps_total=6)).train()
    _, notes = rank([tmp_path / "whole", tmp_path / "mine"])
    assert notes == ["mine has an lr schedule over 4 steps, from step 4 on 6 and whole one over 6 steps."]
    _, notes = rank([tmp_path / "early", tmp_path / "mine"])
    assert len(notes) == 1
    assert "early one over 4 steps, from step 2 on 6" in notes[0]
    answer = invoke("compare", "whole", "mine")
    assert "Hard to compare: mine has an lr schedule over 4 steps" in answer.output


def test_a_constant_lr_is_not_moved_by_a_longer_schedule(recipe, tmp_path):
    recipe = msgspec.structs.replace(recipe, settings=recipe.settings | {"lr_scheduler_type": "constant"})
    begin(recipe, tmp_path / "mine").train()
    prepare(Request(source=tmp_path / "mine", extend=2)).train()
    begin(msgspec.structs.replace(recipe, steps_total=6, decay="none"), tmp_path / "whole").train()
    assert rank([tmp_path / "whole", tmp_path / "mine"])[1] == []


def test_other_settings_and_models_are_hard_to_compare(recipe, tmp_path):
    begin(recipe, tmp_path / "mine").train()
    settings = recipe.settings | {"learning_rate": 2e-2, "save_steps": 4}
    begin(msgspec.structs.replace(recipe, settings=settings), tmp_path / "fast").train()
    begin(msgspec.structs.replace(recipe, model=MODEL | {"intermediate_size": 64}), tmp_path / "thin").train()
    assert rank([tmp_path / "mine", tmp_path / "fast"])[1] == ["fast has learning rate 0.02 and mine 0.01."]
    assert rank([tmp_path / "mine", tmp_path / "thin"])[1] == ["thin has another model than mine."]


def test_a_branch_from_an_older_checkpoint_says_that_its_schedule_is_stretched(recipe, tmp_path):
    begin(recipe, tmp_path / "mine").train()
    prepare(Request(source=tmp_path / "mine", extend=2)).train()
    branch = prepare(Request(source=tmp_path / "mine" / "checkpoint-2", out=tmp_path / "on", decay="none"))
    assert any("spans 6 steps instead of 4" in note for note in branch.notes)


def test_a_comparison_that_was_stopped_goes_on_with_the_rival_of_its_beginning(recipe, tmp_path):
    run = begin(msgspec.structs.replace(recipe, decay="alphadecay"), tmp_path / "mine")
    reserve_rival(run, "uniform", tmp_path / "mine-uniform")
    run.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
    assert not is_finished(tmp_path / "mine-uniform")
    again = prepare(Request(source=tmp_path / "mine"))
    reserve_rival(again, "uniform", tmp_path / "mine-uniform")
    again.train()
    prepare_rival(again, "uniform", tmp_path / "mine-uniform").train()
    begin(recipe, tmp_path / "plain").train()
    assert same(tmp_path / "mine-uniform" / "checkpoint-4", tmp_path / "plain" / "checkpoint-4")
    assert rank([tmp_path / "mine-uniform", tmp_path / "mine"])[1] == []


def test_a_rival_that_has_not_begun_follows_a_longer_schedule(recipe, tmp_path):
    run = begin(msgspec.structs.replace(recipe, decay="alphadecay"), tmp_path / "mine")
    reserve_rival(run, "none", tmp_path / "mine-none")
    run.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
    longer = prepare(Request(source=tmp_path / "mine", extend=2))
    reserve_rival(longer, "none", tmp_path / "mine-none")
    longer.train()
    rival = prepare_rival(longer, "none", tmp_path / "mine-none")
    assert rival.step == longer.step > 0
    rival.train()
    assert rank([tmp_path / "mine-none", tmp_path / "mine"])[1] == []


def test_the_rival_has_the_batches_that_the_run_was_given(recipe, tmp_path):
    begin(recipe, tmp_path / "mine").train()
    run = prepare(
        Request(
            source=tmp_path / "mine" / "checkpoint-2", out=tmp_path / "on", decay="uniform", allow_data_shift=True,
            settings={"per_device_train_batch_size": 2},
        )
    )  # fmt: skip
    run.train()
    rival = prepare_rival(run, "none", tmp_path / "on-none")
    assert rival.trainer.args.per_device_train_batch_size == 2
    rival.train()
    assert rank([tmp_path / "on-none", tmp_path / "on"])[1] == []


def test_a_taken_folder_is_refused_before_the_run_trains(recipe, tmp_path):
    run = begin(recipe, tmp_path / "mine")
    (tmp_path / "mine-none").mkdir()
    (tmp_path / "mine-none" / "notes.txt").touch()
    with pytest.raises(UsageError, match="mine-none is not empty"):
        reserve_rival(run, "none", tmp_path / "mine-none")


def test_a_configuration_of_another_schema_names_both_and_the_way_on(recipe, text, tmp_path):
    begin(recipe, tmp_path / "mine").train()
    path = tmp_path / "mine" / CONFIG
    path.write_text(path.read_text().replace("schema = 3", "schema = 2"))
    with pytest.raises(
        SourceError, match="is of schema 2, and this specdiag reads 3: use the one that made it, or move"
    ):
        prepare(Request(source=tmp_path / "mine"))
    shutil.move(path, tmp_path)
    run = prepare(
        Request(
            source=tmp_path / "mine" / "checkpoint-4", data=(str(text),), out=tmp_path / "on", steps_total=1,
            decay="uniform", block_size=32, fresh_optimizer=True, settings={"use_cpu": True},
        )
    )  # fmt: skip
    assert (run.step, run.steps_total) == (0, 1)
