"""Held-out data of its own: which blocks it gives, and that a run trains on all of the others and keeps to it."""

import re

import msgspec
import numpy as np
import pytest
import transformers
from command import invoke
from plain_run import BATCH, BLOCK, SEED, library_text, llama, same
from recipes import tiny_recipe, write_recipe
from task_data import VOCABULARY, roberta_tokenizer

from specdiag import SourceError, UsageError
from specdiag.train.data.tokens import load_data
from specdiag.train.runs.begin import begin
from specdiag.train.runs.config import load_config
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.sweep import parse_grid, prepared
from specdiag.train.tasks.masked import load_masked

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def other(tmp_path):
    """A text that is not in the training data."""
    path = tmp_path / "other.txt"
    path.write_bytes(b"Held out: these words are in no module of the library.\n" * 40)
    return path


def load(data, held_out, cache, block_size=16, vocabulary=256, **options):
    return load_data(
        [data], eval_paths=held_out, tokenizer=None, vocabulary=vocabulary, block_size=block_size, seed=0, cache=cache, **options
    )  # fmt: skip


def content(blocks):
    return [blocks[i]["input_ids"].tolist() for i in range(len(blocks))]


def cut(values, size):
    return [list(values[i : i + size]) for i in range(0, len(values) // size * size, size)]


def test_every_block_of_the_data_is_trained_on_and_those_of_the_other_file_are_held_out(text, other, tmp_path):
    data = load(text, [other], tmp_path)
    assert content(data.train) == cut(text.read_bytes(), 16)
    assert content(data.held_out) == cut(other.read_bytes(), 16)
    assert data.n_tokens == len(data.train) * 16
    assert [file.name for file in data.fingerprint.held_out] == ["other.txt"]


def test_of_a_large_file_512_blocks_are_taken_from_all_of_it(tmp_path):
    np.arange(64, dtype=np.uint16).tofile(tmp_path / "a.bin")
    np.repeat(np.arange(4000, dtype=np.uint16), 2).tofile(tmp_path / "b.bin")
    held_out = load(tmp_path / "a.bin", [tmp_path / "b.bin"], tmp_path, 2, vocabulary=4000).held_out
    numbers = [first for first, _ in content(held_out)]
    assert len(numbers) == 512
    assert numbers == sorted(set(numbers))
    assert np.histogram(numbers, 4, (0, 4000))[0].min() > 90
    assert len(load(tmp_path / "a.bin", [tmp_path / "b.bin"], tmp_path, 16, vocabulary=4000).held_out) == 500


def test_a_mask_hides_tokens_in_the_blocks_of_the_other_file(text, other, tmp_path):
    tokenizer = roberta_tokenizer(text)
    options = {"tokenizer": tokenizer, "vocabulary": VOCABULARY, "block_size": 16, "seed": 0, "cache": tmp_path}
    data = load_masked([text], eval_paths=[other], **options)
    plain = load_data([text], eval_paths=[other], **options)
    assert len(data.held_out) == len(plain.held_out)
    shown = [block["labels"] for block in map(data.held_out.__getitem__, range(len(data.held_out)))]
    for hidden, labels in zip(shown, content(plain.held_out), strict=True):
        assert 0 < int((hidden >= 0).sum()) < 16
        assert all(int(h) in (-100, token) for h, token in zip(hidden, labels, strict=True))
    assert data.fingerprint.held_out == plain.fingerprint.held_out != ()


@pytest.mark.parametrize("names", [("train.bin", "train.bin"), ("a.txt", "copy.txt")])
def test_a_file_that_is_trained_on_is_not_held_out(text, tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(text.read_bytes())
    with pytest.raises(SourceError, match=f"{names[1]} of eval_data= is {names[0]} of data=, which is trained on"):
        load(tmp_path / names[0], [tmp_path / names[1]], tmp_path, vocabulary=1 << 16)


def test_data_of_two_kinds_and_of_less_than_a_block_are_refused(text, other, tmp_path):
    np.arange(64, dtype=np.uint16).tofile(tmp_path / "a.bin")
    with pytest.raises(UsageError, match=r"a\.bin holds tokens and .*other\.txt text: give data= and eval_data= of"):
        load(tmp_path / "a.bin", [other], tmp_path)
    other.write_text("short")
    with pytest.raises(SourceError, match=r"other\.txt holds 5 tokens, fewer than a block of 16"):
        load(text, [other], tmp_path)


def test_a_run_keeps_to_its_held_out_file(text, other, tmp_path):
    recipe = tiny_recipe(text, eval_data=(str(other),))
    begin(recipe, tmp_path / "run").train()
    again = prepare(Request(source=tmp_path / "run", extend=1))
    assert again.config.recipe.eval_data == (str(other),)
    assert again.config.fingerprint == load_config(tmp_path / "run").fingerprint
    again.lock.release()
    other.write_bytes(other.read_bytes().upper())
    with pytest.raises(UsageError, match=r"held-out other\.txt has other content"):
        prepare(Request(source=tmp_path / "run", extend=1))
    third = other.rename(tmp_path / "third.txt")
    with pytest.raises(UsageError, match=r"held-out other\.txt is gone; held-out third\.txt is new"):
        prepare(Request(source=tmp_path / "run", eval_data=[third], extend=1))


def test_a_plain_run_on_all_blocks_goes_on_bit_for_bit(text, other, tmp_path):
    def trainer(folder):
        arguments = transformers.TrainingArguments(
            str(folder), max_steps=4, save_steps=2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
            per_device_train_batch_size=BATCH, seed=SEED, learning_rate=1e-2,
        )  # fmt: skip
        return transformers.Trainer(llama(), arguments, train_dataset=load(text, [other], tmp_path, BLOCK).train)

    trainer(tmp_path / "plain").train()
    source = tmp_path / "plain" / "checkpoint-2"
    prepare(
        Request(source=source, data=[text], eval_data=[other], block_size=BLOCK, out=tmp_path / "on", decay="uniform")
    ).train()
    assert same(tmp_path / "on" / "checkpoint-4", tmp_path / "plain" / "checkpoint-4")


@pytest.fixture
def nanogpt_data(text, other, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, path in (("train.bin", text), ("val.bin", other)):
        np.frombuffer(path.read_bytes(), np.uint8).astype(np.uint16).tofile(folder / name)
    (folder / "prepare.py").write_text("pass\n")
    return folder


@pytest.mark.parametrize("given", ["", "train.bin"])
def test_val_bin_beside_train_bin_is_taken_and_named(nanogpt_data, other, tmp_path, given):
    run = begin(tiny_recipe(nanogpt_data / given), tmp_path / "run")
    assert any(str(nanogpt_data / "val.bin") in note and "nanoGPT" in note for note in run.notes)
    assert content(run.data.held_out) == cut(other.read_bytes(), 32)
    recipe = load_config(tmp_path / "run").recipe
    assert recipe.data == (str(nanogpt_data / "train.bin"),)
    assert recipe.eval_data == (str(nanogpt_data / "val.bin"),)
    run.train()
    again = prepare(Request(source=tmp_path / "run", extend=1))
    assert content(again.data.held_out) == cut(other.read_bytes(), 32)


def test_a_run_that_began_without_val_bin_goes_on_without_it(nanogpt_data, tmp_path):
    held_out = (nanogpt_data / "val.bin").rename(tmp_path / "later.bin")
    begin(tiny_recipe(nanogpt_data / "train.bin"), tmp_path / "run").train()
    held_out.rename(nanogpt_data / "val.bin")
    assert prepare(Request(source=tmp_path / "run", extend=1)).config.recipe.eval_data == ()


def test_a_sweep_takes_up_its_runs_although_val_bin_was_found(nanogpt_data, tmp_path):
    recipe = tiny_recipe(nanogpt_data / "train.bin")
    for _ in range(2):
        for folder, make in prepared(recipe, parse_grid("seed=1,2"), tmp_path / "grid").values():
            made = make()
            made.lock.release()
            assert load_config(folder).recipe.eval_data == (str(nanogpt_data / "val.bin"),)


@pytest.mark.parametrize("task", ["glue/cola", "classification", "images"])
def test_other_tasks_name_their_own_rule(text, other, tmp_path, task):
    recipe = msgspec.structs.replace(tiny_recipe(text, eval_data=(str(other),)), task=task)
    with pytest.raises(UsageError, match=f"eval_data= is for causal-lm and masked-lm, and the task is {task}"):
        begin(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_names_the_file(text, tmp_path):
    other = tmp_path / "held.txt"
    other.write_bytes(library_text(tmp_path, 40_000).read_bytes()[-2000:])
    recipe = write_recipe(tiny_recipe(text), tmp_path / "tiny.toml")
    result = invoke("train", recipe, "--eval-data", other, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert f"{len(text.read_bytes()) // 32} to train on, 62 of held.txt held out." in result.stdout
    wrong = invoke("train", recipe, "--eval-data", text, "--out", tmp_path / "wrong")
    assert wrong.exit_code == 3
    assert "of --eval-data is library.txt of --data" in wrong.stderr


def test_what_the_source_run_may_have_trained_on_is_not_called_held_out(plain, text, other, tmp_path):
    def shown(source, name, *more):
        result = invoke("train", source, "--resume", "--decay", "uniform", "--out", tmp_path / name, *more)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    weak = shown(plain / "checkpoint-4", "weak", "--data", text)
    assert re.search(r"\d kept apart from now on; the source run may have trained on them\.", weak)
    assert "Kept apart: loss" in weak
    assert "eld out" not in weak
    strong = shown(plain / "checkpoint-4", "strong", "--data", text, "--eval-data", other)
    assert "of other.txt held out." in strong
    assert "Held out: loss" in strong
    assert "ept apart" not in strong
    assert load_config(tmp_path / "weak").kept_apart
    assert not load_config(tmp_path / "strong").kept_apart
    ranking = invoke("compare", tmp_path / "weak", tmp_path / "strong")
    assert "kept-apart loss" in ranking.stdout
    ranking = invoke("compare", tmp_path / "strong", tmp_path / "strong")
    assert "held-out loss" in ranking.stdout


@pytest.mark.parametrize(("change", "apart"), [({}, "held out"), ({"max_tokens": 2000}, "kept apart")])
def test_a_branch_of_our_run_holds_out_what_that_run_held_out(text, tmp_path, change, apart):
    begin(tiny_recipe(text), tmp_path / "run").train()
    branch = prepare(
        Request(source=tmp_path / "run", out=tmp_path / "on", extend=1, decay="none", allow_data_shift=True, **change)
    )
    assert branch.config.apart == apart
    branch.train()
    assert prepare(Request(source=tmp_path / "on", extend=1)).config.apart == apart


def test_new_weights_hold_out_and_given_weights_keep_apart(plain, text, tmp_path):
    assert begin(tiny_recipe(text), tmp_path / "new").config.apart == "held out"
    given = tiny_recipe(text, start=str(plain / "checkpoint-4"), model={})
    assert begin(given, tmp_path / "given").config.apart == "kept apart"
