"""Nonsense and contradictions given to `specdiag train`: one sentence before the first step, and no folder left."""

import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from command import invoke
from foreign_programs import nano_run
from recipes import MODEL, tiny_recipe, write_recipe

from specdiag import ComputationError, SourceError, UsageError
from specdiag.train.data.byte_tokenizer import byte_tokenizer
from specdiag.train.runs.begin import begin
from specdiag.train.runs.changes import changed, parse_assignments
from specdiag.train.runs.outcome import Outcome, load_outcome, save_outcome
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.rival import prepare_rival
from specdiag.train.runs.sweep import balance_of, parse_grid, prepared

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def recipe(text):
    return tiny_recipe(text, {"save_steps": 1}, norms_every=0, steps_total=2)


@pytest.fixture
def written(recipe, tmp_path):
    return write_recipe(recipe, tmp_path / "tiny.toml")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("seed=-1", "'seed' is -1: give a number of 0 to 4294967295"),
        ("data_seed=4294967296", "of 0 to 4294967295"),
        ("gradient_accumulation_steps=0", "at least 1"),
        ("per_device_eval_batch_size=0", "at least 1"),
        ("batch_size=0", "'per_device_train_batch_size' is 0"),
        ("dataloader_num_workers=-1", "at least 0"),
        ("learning_rate=1e300", "0 to 1e\\+32"),
        ("weight_decay=-0.1", "0 to 1000000"),
        ("label_smoothing_factor=7", "0 to 1"),
        ("max_grad_norm=nan", "must be a finite number"),
        ("eval_strategy=steps", "is evaluated before the first step"),
        ("push_to_hub=true", "'push_to_hub' is no setting here"),
        ("save_strategy=no", "save_steps says it"),
        ("resume_from_checkpoint=/x", "resume= says it"),
        ("warmup_steps=" + "1" * 5000, "'warmup_steps'"),
        ("warmup_steps=" + "[" * 3000, "'warmup_steps'"),
        ("warmup_steps=1\nx=3", "'warmup_steps'"),
    ],
)
def test_a_setting_that_no_run_can_have_is_refused_by_name(recipe, assignment, words):
    with pytest.raises(UsageError, match=words):
        changed(recipe, parse_assignments([assignment]))


@pytest.mark.parametrize("texts", [["bf16=true", "bf16=false"], ["lr=1", "learning_rate=2"], ["lr=1", "settings.lr=1"],
                                   ["seed=1", "settings.seed=2"]])  # fmt: skip
def test_one_setting_is_given_once_under_all_its_names(recipe, texts):
    with pytest.raises(UsageError, match=r"given twice|mean the same|unknown argument"):
        changed(recipe, parse_assignments(texts))


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("decay='uniform", "close the quotation"),
        ("lr=1e-3 learning_rate=1e-2", "mean the same"),
        ("tokenizer=a/b,a-b", "two runs would be written to the folder tokenizer=a-b"),
    ],
)
def test_a_grid_that_is_none_is_refused(recipe, tmp_path, grid, words):
    with pytest.raises(UsageError, match=words):
        prepared(recipe, parse_grid(grid), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_kwargs": {"foo": 1}},
        {"lr_scheduler_type": "cosine_with_min_lr"},
        {"accelerator_config": "no-such-file.json"},
    ],
)
def test_what_the_trainer_would_trip_over_later_leaves_no_run(recipe, tmp_path, settings):
    given = msgspec.structs.replace(recipe, settings=recipe.settings | settings)
    with pytest.raises(UsageError):
        begin(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot make the folder .*file/run: Not a directory"):
        begin(recipe, tmp_path / "file" / "run")


def test_a_model_without_heads_is_refused(recipe, tmp_path):
    with pytest.raises(UsageError, match="llama model"):
        begin(msgspec.structs.replace(recipe, model=MODEL | {"num_attention_heads": 0}), tmp_path / "run")


def test_a_model_that_no_memory_holds_is_no_error_of_usage(recipe, tmp_path):
    with pytest.raises(ComputationError, match="more memory than there is"):
        begin(msgspec.structs.replace(recipe, model=MODEL | {"hidden_size": 1 << 40}), tmp_path / "run")


def test_columns_are_refused_where_no_text_has_a_label(recipe, tmp_path):
    with pytest.raises(UsageError, match="the task is causal-lm"):
        begin(msgspec.structs.replace(recipe, columns=("text", "label")), tmp_path / "run")


def test_an_empty_beginning_is_refused_before_the_run(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = invoke("train", written, "--sample", "")
    assert (answer.exit_code, "needs a text to continue" in answer.stderr) == (2, True), answer.output
    assert not (tmp_path / "tiny").exists()


def test_a_run_without_a_checkpoint_starts_over_on_the_command_line(recipe, tmp_path):
    begin(recipe, tmp_path / "run").lock.release()
    refused = invoke("train", "--resume", tmp_path / "run", "--extend", "1")
    assert (refused.exit_code, "leave out extend" in refused.stderr) == (2, True), refused.output
    answer = invoke("train", "--resume", tmp_path / "run", "--sample", "import")
    assert answer.exit_code == 0, answer.output
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_options_beside_a_saved_plan_are_refused(recipe, tmp_path):
    begin(recipe, tmp_path / "run").train()
    (tmp_path / "plan.json").touch()
    with pytest.raises(UsageError, match="s1= does not change the saved plan"):
        prepare(
            Request(
                source=tmp_path / "run", out=tmp_path / "on", extend=1, decay=f"plan:{tmp_path / 'plan.json'}",
                alphadecay={"s1": 0.5},
            )
        )  # fmt: skip


def test_a_finished_run_beside_with_other_settings_is_not_compared(recipe, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = begin(recipe, tmp_path / "tiny")
    run.train()
    prepare_rival(run, "none", tmp_path / "tiny-none").train()
    shutil.rmtree(tmp_path / "tiny")
    answer = invoke("train", written, "--lr", "0.02", "--compare", "none")
    assert (answer.exit_code, "holds a run with other settings" in answer.stderr) == (2, True), answer.output
    assert not list((tmp_path / "tiny").glob("checkpoint-*"))


def test_the_balance_of_a_run_that_went_on_is_that_of_its_end(recipe, tmp_path):
    run = begin(recipe, tmp_path / "run")
    run.train()
    before = balance_of(tmp_path / "run")
    prepare(Request(source=tmp_path / "run", extend=2)).train()
    assert before != balance_of(tmp_path / "run")


def test_a_ranking_takes_no_option_that_it_would_pass_over(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(recipe, tmp_path / "a").train()
    for name in "bc":
        shutil.copytree("a", name)
    for arguments, words in (
        (["--fail-above", "alpha=0"], "--fail-above would do nothing"),
        (["-o", "x.json"], "-f json, csv or md"),
        (["-f", "csv", "-o", "absent/x.csv"], "the folder absent does not exist"),
    ):
        answer = invoke("compare", "a", "b", "c", *arguments)
        assert (answer.exit_code, words in answer.stderr) == (2, True), answer.output
    assert invoke("compare", "a", "b", "c", "-f", "csv", "-o", "x.csv").exit_code == 0


def test_figures_that_no_run_leaves_are_refused(tmp_path):
    outcome = Outcome(
        step=1, steps_total=1, seconds=1.0, decay_seconds=0.0, tokens=1, train_loss=None, spike_share=None,
        held_out_before={"loss": 1.0}, held_out={"loss": 1.0, "accuracy": 1e308},
    )  # fmt: skip
    save_outcome(tmp_path, outcome)
    with pytest.raises(SourceError, match=r"an? accuracy of 1e\+308, which no run leaves"):
        load_outcome(tmp_path)


def test_cached_tokens_that_were_changed_are_made_anew(recipe, tmp_path, caplog):
    begin(recipe, tmp_path / "run").train()
    (cache,) = (tmp_path / "run").glob("tokens-*.cache")
    held = cache.read_bytes()
    for damaged in (b"", held[: len(held) // 2], bytes(len(held))):
        cache.write_bytes(damaged)
        prepare(Request(source=tmp_path / "run", extend=1)).lock.release()
        assert cache.read_bytes() == held
        assert "the tokens are made anew" in caplog.text
        caplog.clear()


def test_a_model_without_a_vocabulary_has_that_of_its_tokenizer(recipe, tmp_path):
    model = {name: value for name, value in MODEL.items() if name != "vocab_size"}
    run = begin(msgspec.structs.replace(recipe, model=model), tmp_path / "run")
    assert run.trainer.model.config.vocab_size == 256
    assert any("vocab_size: it is 256, that of bytes (the default of llama is 32000)" in note for note in run.notes)
    folder = tmp_path / "tokenizer"
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(folder)
    run = begin(msgspec.structs.replace(recipe, model=model, tokenizer=str(folder)), tmp_path / "other")
    assert run.trainer.model.config.vocab_size == 258
    run.lock.release()
    assert prepare(Request(source=tmp_path / "other")).trainer.model.config.vocab_size == 258


def test_a_vocabulary_that_tokens_do_not_tell_is_named(recipe, tmp_path):
    data = tmp_path / "tokens.bin"
    np.arange(4000, dtype=np.uint16).tofile(data)
    model = {name: value for name, value in MODEL.items() if name != "vocab_size"} | {"hidden_size": 8}
    run = begin(msgspec.structs.replace(recipe, model=model, data=(str(data),)), tmp_path / "run")
    assert any("the model has that of llama by default, 32000" in note for note in run.notes)


@pytest.mark.parametrize("where", ["", "checkpoint-8"])
@pytest.mark.parametrize("fresh", [False, True])
def test_an_adapter_is_called_one(recipe, tmp_path, where, fresh):
    folder = tmp_path / "lora" / where
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").touch()
    (folder / "adapter_model.bin").touch()
    for source in (tmp_path / "lora", folder / "adapter_model.bin"):
        with pytest.raises(
            UsageError, match=r"is an adapter: decay by exponents .* \(cB, A/c\) is the same update .* not to 0"
        ):
            prepare(Request(source=source, fresh_optimizer=fresh, steps_total=4))
    with pytest.raises(UsageError, match="is an adapter"):
        begin(msgspec.structs.replace(recipe, model={}, start=str(tmp_path / "lora")), tmp_path / "run")


def test_no_run_is_written_inside_of_a_source_or_a_checkpoint(recipe, tmp_path):
    begin(recipe, tmp_path / "run").train()
    for out in ("checkpoint-1/x", "checkpoint-1", "checkpoint-2/x", "x"):
        with pytest.raises(UsageError, match="never written to"):
            prepare(Request(source=tmp_path / "run", out=tmp_path / "run" / out, extend=1))
    with pytest.raises(UsageError, match="inside of the checkpoint"):
        begin(recipe, tmp_path / "run" / "checkpoint-1" / "x")
    assert not (tmp_path / "run" / "checkpoint-1" / "x").exists()


def test_a_sweep_passes_over_a_run_that_another_process_writes_to(recipe, written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    busy = tmp_path / "grid" / "decay=uniform_seed=1"
    busy.mkdir(parents=True)
    program = (
        "import sys; from pathlib import Path; from specdiag.system.folder_lock import FolderLock\n"
        "kept = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(busy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        command = ["train", str(written), "--sweep", "decay=none,uniform seed=0,1", "-o", "grid"]
        answer = invoke(*command)
        assert answer.exit_code == 0, answer.output
        for words in ("(1 of 2 locked)", "'decay=uniform_seed=1' is locked: another process writes to it"):
            assert words in answer.stdout, answer.output
        assert f"process {other.pid}" in answer.stderr
    finally:
        other.communicate("")
    again = invoke(*command)
    assert (again.exit_code, "locked" in again.output) == (0, False), again.output


@pytest.mark.parametrize("name", ["out", "out/ckpt.pt"])
def test_a_run_may_lie_beside_the_only_file_that_it_starts_from(tmp_path, name):
    (tmp_path / "out").mkdir()
    nano_run(tmp_path / "out" / "ckpt.pt", bias=True)
    for out, words in (("out/mine", "no data"), ("out", "is not empty: name another out=")):
        with pytest.raises(UsageError, match=words):
            prepare(Request(source=tmp_path / name, out=tmp_path / out, decay="uniform", tokenizer="bytes", extend=9))
