"""`specdiag train --resume`: the run that goes on is the run that would have been, but for the decay."""

import json
import os
import shutil
import signal
from pathlib import Path

import msgspec
import pytest
import torch
import transformers
from command import invoke, python
from plain_run import BATCH, BLOCK, FILES, llama, plain_trainer, same
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

import specdiag
from specdiag import SourceError, UsageError
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.trajectories.metric_log import read_log

UP = "model.layers.0.mlp.up_proj.weight"

pytestmark = pytest.mark.usefixtures("one_thread")


def resumed(source, text, out, **options):
    run = prepare(Request(source=source, data=[text], out=out, **{"decay": "uniform"} | options))
    return run, run.train()


def history(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def test_with_all_ratios_1_it_is_the_uninterrupted_plain_run_bit_for_bit(plain, text, tmp_path):
    resumed(plain / "checkpoint-2", text, tmp_path / "uniform")
    ones = {"decay": "alphadecay", "alphadecay": {"s1": 1.0, "s2": 1.0, "every": 2}}
    _, result = resumed(plain / "checkpoint-2", text, tmp_path / "ones", **ones)
    for run in ("uniform", "ones"):
        assert same(tmp_path / run / "checkpoint-6", plain / "checkpoint-6")
        assert history(tmp_path / run / "checkpoint-6") == history(plain / "checkpoint-6")
    assert (result.step, result.interrupted, result.tokens) == (6, False, 4 * BATCH * BLOCK)
    assert result.train_loss == history(plain / "checkpoint-6")[-1]["loss"]


def test_alphadecay_interrupted_is_alphadecay_uninterrupted(plain, text, tmp_path):
    live = {"decay": "alphadecay", "alphadecay": {"every": 3}}
    resumed(plain / "checkpoint-2", text, tmp_path / "whole", **live)
    run = prepare(Request(source=plain / "checkpoint-2", data=[text], out=tmp_path / "cut", **live))
    result = run.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 3 else None)
    assert result.interrupted
    assert result.held_out_after is None
    go_on = prepare(Request(source=tmp_path / "cut"))
    assert go_on.step == result.step
    go_on.train()
    assert same(tmp_path / "cut" / "checkpoint-6", tmp_path / "whole" / "checkpoint-6")
    assert history(tmp_path / "cut" / "checkpoint-6") == history(tmp_path / "whole" / "checkpoint-6")
    assert not same(tmp_path / "cut" / "checkpoint-6", plain / "checkpoint-6", FILES[:1])


def test_a_plain_trainer_goes_on_from_our_checkpoint(plain, text, tmp_path):
    resumed(plain / "checkpoint-2", text, tmp_path / "ours")
    shutil.copytree(tmp_path / "ours" / "checkpoint-4", tmp_path / "after" / "checkpoint-4")
    plain_trainer(tmp_path / "after", text, tmp_path, seed=1).train(resume_from_checkpoint=True)
    assert same(tmp_path / "after" / "checkpoint-6", plain / "checkpoint-6")
    assert (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours" / "checkpoint-6").config.vocab_size == 256
    )


def test_ratio_2_changes_that_parameter_alone_and_by_the_decay(plain, text, tmp_path):
    plan = specdiag.recommend(plain / "checkpoint-2", weight_decay=0.5, roles="up")
    plan = msgspec.structs.replace(
        plan, entries=tuple(msgspec.structs.replace(e, ratio=2.0, weight_decay=1.0) for e in plan.entries)
    )
    plan.save(tmp_path / "plan.json")
    one_step = {"settings": {"save_steps": 1}}
    seen = {}
    resumed(plain / "checkpoint-2", text, tmp_path / "uniform", **one_step)
    run = prepare(
        Request(
            source=plain / "checkpoint-2",
            data=[text],
            out=tmp_path / "twice",
            decay=f"plan:{tmp_path / 'plan.json'}",
            **one_step,
        )
    )
    run.train(on_first=seen.update)
    before, uniform, twice = (
        weights(at)
        for at in (plain / "checkpoint-2", tmp_path / "uniform" / "checkpoint-3", tmp_path / "twice" / "checkpoint-3")
    )
    assert [name for name in uniform if not torch.equal(uniform[name], twice[name])] == [UP]
    lr = history(tmp_path / "twice" / "checkpoint-3")[-1]["learning_rate"]
    torch.testing.assert_close(uniform[UP] - twice[UP], lr * 0.5 * before[UP], rtol=1e-2, atol=1e-7)
    assert (seen[UP], seen["model.layers.0.mlp.down_proj.weight"], seen["model.norm.weight"]) == (1.0, 0.5, 0.0)


def test_a_plan_beside_the_checkpoint_is_taken_and_goes_with_the_run(plain, text, tmp_path):
    source = Path(shutil.copytree(plain / "checkpoint-4", tmp_path / "mine" / "checkpoint-4"))
    plan = specdiag.recommend(source, weight_decay=0.5, rule="sqrt")
    plan.save(tmp_path / "mine" / "plan.json")
    run, _ = resumed(source, text, tmp_path / "out", decay=None)
    assert f"The decays are those of {tmp_path / 'mine' / 'plan.json'}." in run.notes
    seen = {}
    prepare(Request(source=tmp_path / "out", extend=1)).train(on_first=seen.update)
    assert {name: seen[name] for name in plan.ratios} == pytest.approx({n: 0.5 * r for n, r in plan.ratios.items()})


def test_the_tokenizer_goes_with_the_run_and_changes_no_configuration(plain, tmp_path):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    source = Path(shutil.copytree(plain / "checkpoint-4", tmp_path / "mine" / "checkpoint-4"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<beyond>").save_pretrained(source)
    data = tmp_path / "data.txt"
    data.write_text("a b b c " * 400)
    resumed(source, data, tmp_path / "out")
    saved = tmp_path / "out" / "checkpoint-6"
    assert same(saved, source, ["config.json", "tokenizer.json", "tokenizer_config.json"])
    assert prepare(Request(source=tmp_path / "out", extend=1)).data.n_tokens == 1600


def test_no_decay_reaches_the_steps_and_not_the_checkpoint(plain, text, tmp_path):
    seen = {}
    run = prepare(Request(source=plain / "checkpoint-4", data=[text], out=tmp_path / "none", decay="none"))
    run.train(on_first=seen.update)
    assert set(seen.values()) == {0.0}
    saved = torch.load(tmp_path / "none" / "checkpoint-6" / "optimizer.pt")
    assert [group["weight_decay"] for group in saved["param_groups"]] == [0.5, 0.0]


def test_a_permuted_optimizer_is_refused_and_nothing_is_left(plain, text, tmp_path):
    source = Path(shutil.copytree(plain / "checkpoint-2", tmp_path / "run" / "checkpoint-2"))
    saved = torch.load(source / "optimizer.pt")
    last = len(saved["state"]) - 1
    saved["state"] = {last - key: value for key, value in saved["state"].items()}
    torch.save(saved, source / "optimizer.pt")
    with pytest.raises(
        SourceError, match=r"in another order: .* has shape \(256, 64\), the saved exp_avg in its place"
    ):
        resumed(source, text, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    saved["param_groups"][0]["params"].append(saved["param_groups"][1]["params"].pop())
    torch.save(saved, source / "optimizer.pt")
    with pytest.raises(SourceError, match=r"groups of \[10, 2\] tensors and a Trainer makes \[9, 3\]"):
        resumed(source, text, tmp_path / "out")


def test_matrices_of_one_shape_that_changed_places_are_warned_of(tmp_path, text):
    """Two layers, long enough for moments to tell; q and o of every layer exchanged."""
    trainer = plain_trainer(tmp_path / "run", text, tmp_path, steps=60, model=llama(layers=2), save=60)
    trainer.train()
    source = tmp_path / "run" / "checkpoint-60"
    run = prepare(Request(source=source, data=[text], out=tmp_path / "right", decay="uniform", extend=1))
    assert not any("wrong parameters" in sentence for sentence in run.notes)
    saved = torch.load(source / "optimizer.pt")
    names = [n for n, _ in trainer.model.named_parameters() if "norm" not in n]
    place = {name: i for i, name in enumerate(names)}
    for layer in range(2):
        a, b = (place[f"model.layers.{layer}.self_attn.{role}_proj.weight"] for role in "qo")
        saved["state"][a], saved["state"][b] = saved["state"][b], saved["state"][a]
    torch.save(saved, source / "optimizer.pt")
    run = prepare(Request(source=source, data=[text], out=tmp_path / "swapped", decay="uniform", extend=1))
    assert any("The second moments may lie at the wrong parameters" in sentence for sentence in run.notes), run.notes


def test_a_run_of_ours_refuses_other_data_unless_allowed(plain, text, tmp_path):
    data = Path(shutil.copy(text, tmp_path / "data.txt"))
    resumed(plain / "checkpoint-4", data, tmp_path / "ours")
    data.write_text(data.read_text().upper())
    with pytest.raises(UsageError, match=r"not what the run was trained on: data\.txt has other content"):
        prepare(Request(source=tmp_path / "ours", extend=1))
    assert len(list((tmp_path / "ours").glob("tokens-*.cache"))) == 1
    run = prepare(Request(source=tmp_path / "ours", extend=1, allow_data_shift=True))
    assert "Other data than before: data.txt has other content." in run.notes
    assert "step 7 has the lr that was saved" in " ".join(run.notes)


def test_what_is_logged_reads_back_in_the_long_form(plain, text, tmp_path):
    resumed(
        plain / "checkpoint-2", text, tmp_path / "ours", decay="alphadecay", alphadecay={"mode": "sweep", "every": 2}
    )
    log = read_log(tmp_path / "ours" / "specdiag_log.jsonl")
    ours = {(e.step, e.metric): e.value for e in log if e.module == UP}
    assert {metric for _, metric in ours} == {"weight_decay", "ratio", "alpha", "rho"}
    assert [step for step, metric in ours if metric == "ratio"] == [2, 3, 5]
    assert all(ours[step, "weight_decay"] == 0.5 * ours[step, "ratio"] for step in (2, 3, 5))
    of_run = [(e.step, e.metric) for e in log if not e.module]
    assert of_run == [(2, "eval_loss"), (3, "loss"), (4, "loss"), (5, "loss"), (6, "loss"), (6, "eval_loss")]


def test_bare_weights_need_a_fresh_optimizer(text, tmp_path):
    llama().save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match=r"weights and no optimizer.* fresh_optimizer=True"):
        resumed(tmp_path / "bare", text, tmp_path / "out")
    with pytest.raises(UsageError, match="steps_total=N"):
        resumed(tmp_path / "bare", text, tmp_path / "out", fresh_optimizer=True)
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "use_cpu": True}
    fresh = {"fresh_optimizer": True, "steps_total": 2, "settings": settings, "decay": "alphadecay"}
    run, result = resumed(tmp_path / "bare", text, tmp_path / "out", **fresh)
    assert result.step == 2
    assert max(run.rule.decay.ratios.values()) == 3.0
    assert prepare(Request(source=tmp_path / "out", extend=1)).step == 2
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    over = prepare(Request(source=tmp_path / "out"))
    assert (over.step, over.fresh, over.settings.values["learning_rate"]) == (0, True, 1e-3)
    assert "has no checkpoint yet: it starts over" in over.notes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"learning_rate": 0.1}}, "learning rate 0.01 .optimizer.pt., not 0.1: leave out learning_rate="),
        ({"settings": {"weight_decay": 0.1}}, "weight decay 0.5 .optimizer.pt., not 0.1: leave out weight_decay="),
        ({"settings": {"per_device_train_batch_size": 8}}, "batches of 4, not 8.*allow_data_shift=True"),
        ({"steps_total": 2}, "at step 2 of 6: steps_total=2 is over; give a larger one"),
        ({"steps_total": 9, "extend": 3}, "both set the end of the run"),
        ({"decay": "linear"}, "unknown decay='linear'"),
        ({"alphadecay": {"s1": 1.0}}, "s1= belongs to decay=alphadecay or decay=alphalr, not to uniform"),
        ({"decay": "alphadecay", "alphadecay": {"mode": "often"}}, "unknown mode='often'"),
        ({"decay": None, "alphadecay": {"every": 3}}, "every= belongs to decay=alphadecay"),
        ({"block_size": 64}, "block_size=64 must be 2 to 32"),
    ],
)
def test_what_is_asked_for_explicitly(plain, text, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        resumed(plain / "checkpoint-2", text, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_source_is_never_written_to_and_runs_are_not_mixed(plain, text, tmp_path):
    with pytest.raises(UsageError, match="never written to"):
        resumed(plain / "checkpoint-2", text, plain)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        resumed(plain / "checkpoint-2", text, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in plain.rglob("*")}
    resumed(plain, text, tmp_path / "ours", extend=1)
    assert {p: p.stat().st_mtime_ns for p in plain.rglob("*")} == before
    with pytest.raises(UsageError, match="is a run already"):
        resumed(plain, text, tmp_path / "ours", extend=1)
    with pytest.raises(UsageError, match="goes on with decay 'uniform'"):
        prepare(Request(source=tmp_path / "ours", extend=1, decay="none"))


def test_several_processes_and_foreign_arguments_are_refused(plain, text, tmp_path):
    source = Path(shutil.copytree(plain / "checkpoint-2", tmp_path / "run" / "checkpoint-2"))
    for rank in range(2):
        shutil.copy(source / "rng_state.pth", source / f"rng_state_{rank}.pth")
    with pytest.raises(UsageError, match=r"trained by 2 processes .* allow_data_shift=True"):
        resumed(source, text, tmp_path / "out")
    torch.save(transformers.AutoModelForCausalLM, source / "training_args.bin")
    with pytest.raises(SourceError, match=r"wants to make transformers.*AutoModelForCausalLM"):
        resumed(source, text, tmp_path / "out")
    (source / "training_args.bin").unlink()
    with pytest.raises(SourceError, match=r"training_args\.bin is missing"):
        resumed(source, text, tmp_path / "out")


def test_from_the_command_line_in_an_empty_folder(plain, text, tmp_path, monkeypatch):
    shutil.copytree(plain / "checkpoint-2", tmp_path / "mine" / "checkpoint-2")
    shutil.copy(text, tmp_path / "text.txt")
    monkeypatch.chdir(tmp_path)
    first = invoke("train", "mine", "--resume", "--data", "text.txt", "--basis", "square", "--all")
    assert first.exit_code == 0, first.output
    for words in (
        "checkpoint-2 goes on at step 2, to step 6, in", "From optimizer.pt: learning_rate 0.01, weight_decay 0.5.",
        "From training_args.bin: lr_scheduler_type cosine", "24 state tensors of 12 parameters", "it is recommended now",
        "Weight decay (plan) at step 2", UP, "Step 6: 512 tokens in", "Kept apart: loss",
    ):  # fmt: skip
        assert words in first.output, words
    assert specdiag.load_plan("mine-continued/plan.json").basis == "square"
    done = invoke("train", "--resume")
    assert done.exit_code == 2
    assert "step 6 of 6, the run is finished: go on with --extend N" in done.stderr
    again = invoke("train", "mine-continued", "--resume", "--extend", "1")
    assert again.exit_code == 0, again.output
    assert "From specdiag_train.toml: learning_rate 0.01" in again.output
    assert invoke("train", "mine").exit_code == 2
    assert invoke("train", "--resume", "nowhere").exit_code == 3
    assert invoke("trajectory", "mine-continued", "--metric", "frobenius_norm").exit_code == 0


def test_nothing_heavy_loads_for_help():
    code = (
        "import sys; from typer.testing import CliRunner; from specdiag_cli.main import app\n"
        "assert CliRunner().invoke(app, ['train', '--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "sys.modules['transformers'] = None\n"
        "answer = CliRunner().invoke(app, ['train', '--resume', '.'])\n"
        'assert answer.exit_code == 2 and "pip install transformers accelerate" in answer.stderr, answer.output\n'
    )
    python(code)
