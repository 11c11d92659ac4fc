"""What is learned beside the next token: labelled texts, and hidden tokens that stay the same when a run goes on."""

import csv
import io
import json
import os
import shutil
import signal
import sysconfig
import tokenize
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from msgspec.structs import replace as replace_record
from plain_run import library_text
from sklearn import metrics as oracle
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from specdiag import SourceError, UsageError
from specdiag.train.begin import begin
from specdiag.train.config import load_config
from specdiag.train.data import load_data
from specdiag.train.recipe import Recipe
from specdiag.train.request import Request
from specdiag.train.resume import prepare
from specdiag.train.tasks import metrics
from specdiag.train.tasks.glue import GLUE, glue_average, glue_score, load_classification
from specdiag.train.tasks.loading import block_size
from specdiag.train.tasks.masked import load_masked

BLOCK, VOCABULARY = 32, 400

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return library_text(tmp_path_factory.mktemp("text"), 30_000)


@pytest.fixture(scope="module")
def tokenizer(text):
    """As RoBERTa's, with few tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.train(
        [str(text)],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    pieces.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", **names
    )


@pytest.fixture(scope="module")
def words():
    """A token for a word that it knows; nothing is put around them."""
    pieces = Tokenizer(models.WordLevel({"[PAD]": 0, "?": 1, "a": 2, "b": 3, "c": 4}, unk_token="?"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="?")


def small(kind, **options):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=BLOCK + 2, pad_token_id=1, bos_token_id=0, eos_token_id=2, **options,
    )  # fmt: skip
    return getattr(transformers, f"RobertaFor{kind}")(config)


def trainer(folder, model, data, *, steps, save_steps, **options):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=save_steps, logging_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=8, learning_rate=5e-3, seed=7, **options,
    )  # fmt: skip
    made = transformers.Trainer(
        model, arguments, train_dataset=data.train, eval_dataset=data.held_out, data_collator=data.collate,
        compute_metrics=data.metrics,
    )  # fmt: skip
    made.remove_callback(transformers.PrinterCallback)
    return made


def resumed_is_whole(tmp_path, make, *, steps, at):
    """Whether a run that was cut off at a checkpoint ends with the same weights."""
    make(tmp_path / "whole").train()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{at}", tmp_path / "cut" / f"checkpoint-{at}")
    make(tmp_path / "cut").train(resume_from_checkpoint=True)
    whole, cut = ((tmp_path / n / f"checkpoint-{steps}" / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    return whole == cut


# Metrics


def test_metrics_by_hand():
    """TP 3, FN 1, FP 2, TN 4."""
    true, predicted = np.array([1] * 4 + [0] * 6), np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    assert metrics.accuracy(predicted, true) == 0.7
    assert metrics.f1(predicted, true) == 6 / 9
    assert metrics.matthews(predicted, true) == pytest.approx((3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 6 * 5))
    assert metrics.pearson(np.array([1.0, 2, 4]), np.array([1.0, 3, 2])) == pytest.approx(0.327326835)
    assert metrics.spearman(np.array([1.0, 2, 4]), np.array([1.0, 3, 2])) == pytest.approx(0.5)
    assert metrics.spearman(np.array([1.0, 1, 2]), np.array([1.0, 2, 3])) == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_of_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    true = rng.integers(classes, size=300)
    predicted = np.where(rng.random(300) < 0.4, true, rng.integers(classes, size=300))
    assert metrics.accuracy(predicted, true) == oracle.accuracy_score(true, predicted)
    assert metrics.matthews(predicted, true) == pytest.approx(oracle.matthews_corrcoef(true, predicted))
    if classes == 2:
        assert metrics.f1(predicted, true) == pytest.approx(oracle.f1_score(true, predicted))


def test_the_same_prediction_for_all_is_worth_nothing():
    true, same = np.array([0, 1, 1]), np.array([0, 0, 0])
    assert metrics.matthews(same, true) == oracle.matthews_corrcoef(true, same) == 0
    assert metrics.f1(same, true) == 0
    assert metrics.pearson(same.astype(float), true.astype(float)) == metrics.spearman(same, true) == 0
    assert np.isnan(metrics.pearson(np.array([np.nan, 1, 2]), np.array([1.0, 2, 3])))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", {"matthews": 4 / np.sqrt(5 * 4 * 2 * 1)}),
        ("sst2", {"accuracy": 2 / 3}),
        ("mrpc", {"accuracy": 2 / 3, "f1": 0.8}),
        ("qqp", {"accuracy": 2 / 3, "f1": 0.8}),
        ("mnli", {"accuracy": 2 / 3}),
        ("qnli", {"accuracy": 2 / 3}),
        ("rte", {"accuracy": 2 / 3}),
    ],
)
def test_what_a_trainer_logs_for_each_task(tmp_path, words, task, expected):
    data = load_classification(task, [labelled(tmp_path, task)], tokenizer=words, max_length=8, seed=0)
    logits = np.zeros((6, len(data.labels)))
    logits[np.arange(6), [1, 1, 1, 1, 1, 0]] = 1
    labels = np.array([1, 1, 1, 1, 0, 1] if task != "cola" else [1, 1, 1, 0, 1, 0])  # TP 4, FP 1, FN 1 or 0
    for predictions in (logits, (logits, np.ones(3))):
        found = data.metrics(transformers.EvalPrediction(predictions=predictions, label_ids=labels))
        assert found == pytest.approx(expected)
    assert glue_score(task, {f"eval_{name}": value for name, value in found.items()} | {"eval_loss": 9}) == (
        pytest.approx(np.mean(list(expected.values())))
    )


def test_numbers_are_predicted_for_stsb(tmp_path, words):
    path = tmp_path / "stsb.csv"
    path.write_text("sentence1,sentence2,label\n" + "".join(f"a {'b ' * i},c,{i / 4}\n" for i in range(21)))
    data = load_classification("stsb", [path], tokenizer=words, max_length=16, seed=0)
    assert data.labels is None
    assert data.collate([data.train[0], data.train[1]])["labels"].dtype == torch.float32
    predictions, truth = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    found = data.metrics(transformers.EvalPrediction(predictions=predictions, label_ids=truth))
    assert found == pytest.approx({"pearson": 0.327326835, "spearman": 0.5})
    made = trainer(tmp_path / "run", small("SequenceClassification", num_labels=1), data, steps=2, save_steps=9)
    made.train()
    assert {"eval_loss", "eval_pearson", "eval_spearman"} <= set(made.evaluate())


PAPER = {
    "uniform": ([59.73, 86.78, 87.01, 92.59, 89.97, 70.11, 93.69, 90.78], 83.83),
    "adadecay": ([60.45, 87.23, 88.19, 92.62, 89.95, 73.36, 93.73, 90.90], 84.55),
    "awd": ([60.72, 87.44, 89.53, 92.58, 90.08, 72.27, 93.72, 90.90], 84.66),
    "alphadecay": ([62.82, 87.11, 89.61, 92.73, 90.12, 73.86, 93.77, 90.91], 85.12),
}
"""Table 4 of arXiv 2506.14562: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, and its average."""


@pytest.mark.parametrize("method", PAPER)
def test_the_average_is_that_of_the_paper(method):
    scores, average = PAPER[method]
    tasks = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")
    results = {t: dict.fromkeys(GLUE[t].metrics, s / 100) for t, s in zip(tasks, scores, strict=True)}
    assert 100 * glue_average(results) == pytest.approx(average, abs=0.0051)


def test_scores_that_cannot_be():
    with pytest.raises(UsageError, match=r"mrpc is judged by accuracy and f1, and there is eval_loss, f1"):
        glue_score("mrpc", {"eval_loss": 1.0, "f1": 0.5})
    with pytest.raises(UsageError, match="'wnli' is no task of GLUE"):
        glue_score("wnli", {})
    with pytest.raises(UsageError, match=r"over eight tasks, and there is no result of cola, sst2, mrpc, stsb, qqp"):
        glue_average({"mnli": {}, "qnli": {}, "rte": {}})


# Labelled texts


def table(columns, n=24):
    """Rows whose texts differ, labels by turns."""
    *texts, _ = columns
    return [{**{name: f"{name} {'a ' * i}".strip() for name in texts}, columns[-1]: i % 2} for i in range(n)]


def labelled(folder, task, name=None):
    columns = [*GLUE[task].texts, "label"]
    return write(folder / (name or f"{task}.jsonl"), table(columns))


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_text(file.getvalue())
    return path


def load(paths, words, task="classification", **options):
    return load_classification(
        task, paths, tokenizer=words, max_length=options.pop("max_length", 64), seed=0, **options
    )


def rows_of(part):
    return [(row.texts, part[i]["labels"]) for i, row in enumerate(part.rows)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path, words, suffix):
    rows = table(["text", "label"])
    rows[3]["text"] = "NA"
    rows[4]["text"] = "an ä and a, comma"
    data = load([write(tmp_path / f"data.{suffix}", rows)], words)
    found = rows_of(data.train) + rows_of(data.held_out)
    assert sorted(found) == sorted(((row["text"],), row["label"]) for row in rows)
    assert data.labels == ("0", "1")
    assert (data.fingerprint.task, data.fingerprint.columns) == ("classification", ("text", "label"))


def test_quotation_marks_in_tsv_are_text(tmp_path, words):
    path = tmp_path / "data.tsv"
    path.write_text('sentence\tlabel\nhe said "yes\t1\nand "no\t0\n"maybe" he said\t1\n')
    data = load([path], words, "sst2")
    assert sorted(row.texts[0] for part in (data.train, data.held_out) for row in part.rows) == [
        '"maybe" he said', 'and "no', 'he said "yes',
    ]  # fmt: skip


def test_what_is_held_out_is_told_by_the_names_of_files(tmp_path, words):
    def named(*names, task="mnli"):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        for i, name in enumerate(names):
            write(folder / f"{name}.jsonl", table([*GLUE[task].texts, "label"], 5 + i))
        data = load([folder], words, task)
        return len(data.train), len(data.held_out), [file.name for file in data.fingerprint.files]

    assert named("train", "validation") == (5, 6, ["train.jsonl", "validation.jsonl"])
    assert named("mine-dev", "other", "test") == (6, 5, ["other.jsonl", "mine-dev.jsonl"])
    assert named("a_test", "rows-00") == (6, 5, ["rows-00.jsonl", "a_test.jsonl"])
    assert named("train", "validation_matched", "validation_mismatched")[:2] == (5, 6)
    assert named("held_out", "training")[:2] == (6, 5)
    with pytest.raises(UsageError, match=r"validation.jsonl would be held out, and nothing is there to train on"):
        named("validation")


def test_of_one_file_a_tenth_of_the_texts_is_held_out_whatever_their_order(tmp_path, words):
    rows = [{"text": f"{'a ' * (i // 2)}", "label": i % 3} for i in range(400)]
    first = load([write(tmp_path / "a.jsonl", rows)], words)
    second = load([write(tmp_path / "b.jsonl", rows[::-1])], words)
    held_out = {row.texts for row in first.held_out.rows}
    assert len(held_out) == 20
    assert held_out == {row.texts for row in second.held_out.rows}
    assert not held_out & {row.texts for row in first.train.rows}
    assert len(first.train) + len(first.held_out) == 400


def test_labels_by_number_and_by_name(tmp_path, words):
    def classes(labels, task="classification", columns=("text", "label")):
        rows = [{columns[0]: f"text {i}", columns[1]: label} for i, label in enumerate(labels)]
        data = load([write(tmp_path / "labels.jsonl", rows)], words, task)
        found = {texts[0]: label for part in (data.train, data.held_out) for texts, label in rows_of(part)}
        return data.labels, [found[f"text {i}"] for i in range(len(rows))]

    assert classes([10, 9, 10, -1]) == (("-1", "9", "10"), [2, 1, 2, 0])
    assert classes(["b", "a", "b"]) == (("a", "b"), [1, 0, 1])
    assert classes([True, False, True]) == (("0", "1"), [1, 0, 1])
    assert classes([1.0, 0.0, 1.0]) == (("0", "1"), [1, 0, 1])
    sst2 = {"task": "sst2", "columns": ("sentence", "label")}
    for labels in ([1, 0, 1], ["positive", "negative", "positive"], ["1", "0", "1"], [1.0, 0.0, 1.0]):
        assert classes(labels, **sst2) == (("negative", "positive"), [1, 0, 1])


def test_columns_can_be_named(tmp_path, words):
    rows = [{"#1 String": f"a {'b ' * i}", "#2 String": "c", "Quality": i % 2} for i in range(6)]
    path = write(tmp_path / "msr.tsv", rows)
    columns = ["#1 String", "#2 String", "Quality"]
    data = load([path], words, "mrpc", columns=columns)
    assert data.fingerprint.columns == tuple(columns)
    one = load([path], words, "mrpc", columns=["#1 String", "Quality"])
    assert data.fingerprint.differences(one.fingerprint) == [
        "columns #1 String, #2 String, Quality became #1 String, Quality"
    ]
    assert load([path], words, columns=columns).fingerprint.differences(data.fingerprint) == [
        "task classification became mrpc"
    ]


def test_examples_are_cut_and_padded(tmp_path, words):
    rows = [{"sentence1": "a " * 9, "sentence2": "b " * n, "label": n % 2} for n in (1, 2, 3, 4)]
    data = load([write(tmp_path / "pairs.jsonl", rows)], words, "rte", max_length=11)
    lengths = sorted(len(part[i]["input_ids"]) for part in (data.train, data.held_out) for i in range(len(part)))
    assert lengths == [10, 11, 11, 11]
    batch = data.collate([data.train[i] for i in range(3)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 11)
    assert batch["labels"].dtype == torch.long
    assert ((batch["input_ids"] == 0) == (batch["attention_mask"] == 0)).all()


def test_what_is_refused(tmp_path, words):
    folder = tmp_path / "refused"
    folder.mkdir()

    def file(name, *rows):
        return [write(folder / name, list(rows))]

    a, b = {"text": "a", "label": 1}, {"text": "b", "label": 0}
    for task, paths, options, error, said in (
        ("wnli", [], {}, UsageError, "unknown task 'wnli'; choose cola, sst2"),
        ("classification", [], {}, UsageError, "name the texts to classify with --data PATH, or one of GLUE"),
        ("sst2", file("a.csv", a), {"columns": ["text"]}, UsageError, "one or two columns with text .* not text"),
        ("sst2", file("b.csv", a), {}, SourceError, "has columns text, label and not sentence, label: say with --col"),
        ("sst2", ["nowhere"], {}, SourceError, "there is no nowhere; a dataset on the hub is named org/name"),
        (
            "sst2",
            [folder / "b.csv", "org/name"],
            {},
            UsageError,
            "no path org/name here, and a dataset .* give it alone",
        ),
        (
            "sst2",
            ["org/name", folder / "b.csv"],
            {},
            UsageError,
            "no path org/name here, and a dataset .* give it alone",
        ),
        ("classification", file("c.jsonl", a, b | {"text": None}), {}, SourceError, r"row 2 of .*c.jsonl has no text"),
        ("classification", file("d.jsonl", a, b | {"label": None}), {}, SourceError, "label None, which is no class"),
        ("classification", file("e.jsonl", a, b | {"label": 0.5}), {}, SourceError, "label 0.5, which is no class"),
        ("classification", file("f.csv", a, b | {"label": ""}), {}, SourceError, "label '', which is no class"),
        (
            "classification",
            file("g.csv", a, b | {"label": 1}),
            {},
            SourceError,
            "all others have the label 1: give two",
        ),
        ("classification", file("h.csv", a, a | {"label": 0}), {}, SourceError, "holds 1 different texts"),
        (
            "stsb",
            file("i.csv", a, b | {"label": "x"}),
            {"columns": ["text", "label"]},
            SourceError,
            "stsb predicts a num",
        ),
        (
            "stsb",
            file("j.csv", a, b | {"label": "nan"}),
            {"columns": ["text", "label"]},
            SourceError,
            "stsb predicts a n",
        ),
        (
            "mnli",
            file("k.csv", a, b | {"label": 3}),
            {"columns": ["text", "label"]},
            SourceError,
            "label 3, and mnli has",
        ),
        ("mnli", file("l.csv", a, b | {"label": -1}), {"columns": ["text", "label"]}, SourceError, "is not labelled"),
    ):
        with pytest.raises(error, match=said):
            load(paths, words, task, **options)
    (folder / "text.txt").write_text("a")
    with pytest.raises(UsageError, match=r"is none of \.csv, \.tsv, \.jsonl, \.json, \.parquet"):
        load([folder / "text.txt"], words)
    (folder / "m.csv").write_text("text,label\n")
    with pytest.raises(SourceError, match=r"m\.csv holds no rows"):
        load([folder / "m.csv"], words)
    write(folder / "n-train.csv", [a, b])
    (folder / "n-dev.csv").write_text("text,label\n")
    with pytest.raises(SourceError, match=r"n-dev\.csv holds no rows"):
        load([folder / "n-train.csv", folder / "n-dev.csv"], words)
    with pytest.raises(UsageError, match="needs a tokenizer with a padding token, and there is no tokenizer"):
        load([], None, "cola")
    unpadded = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    with pytest.raises(UsageError, match=r"and \w+ has no padding token"):
        load([], unpadded, "cola")


def comments(folder):
    """Lines of the library that hold a `#`: those that begin with it, and those that do not."""
    found = {True: [], False: []}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]:
        with tokenize.open(path) as file:
            for line in map(str.strip, file):
                if 8 < len(line) < 60:
                    found[line.startswith("#")].append(line)
    n = min(map(len, found.values()), default=0)
    assert n > 300
    rows = [{"text": line, "label": "comment" if kind else "code"} for kind in found for line in found[kind][:n]]
    return write(folder / "lines.csv", rows)


def test_a_small_encoder_learns_what_is_a_comment(tmp_path, tokenizer):
    data = load([comments(tmp_path)], tokenizer, max_length=BLOCK)
    assert data.labels == ("code", "comment")

    def make(folder):
        return trainer(folder, small("SequenceClassification"), data, steps=60, save_steps=30)

    before = make(tmp_path / "before").evaluate()
    assert resumed_is_whole(tmp_path, make, steps=60, at=30)
    model = transformers.RobertaForSequenceClassification.from_pretrained(tmp_path / "whole" / "checkpoint-60")
    after = trainer(tmp_path / "after", model, data, steps=1, save_steps=9).evaluate()
    assert abs(before["eval_matthews"]) < 0.3
    assert after["eval_accuracy"] > 0.9, after
    assert after["eval_matthews"] > 0.8, after


# Hidden tokens


def masked(text, tokens, cache, **options):
    known = {"tokenizer": tokens, "vocabulary": VOCABULARY, "block_size": BLOCK, "seed": 7, "cache": cache}
    return load_masked([text], **known | options)


def test_an_interrupted_run_hides_the_tokens_that_the_whole_one_did(tmp_path, text, tokenizer):
    data = masked(text, tokenizer, tmp_path)
    epoch = -(-len(data.train) // 8)

    def make(folder):
        return trainer(folder, small("MaskedLM"), data, steps=epoch + 4, save_steps=epoch + 2)

    assert resumed_is_whole(tmp_path, make, steps=epoch + 4, at=epoch + 2)  # in the second epoch


def test_with_the_generator_of_torch_it_would_not(tmp_path, text, tokenizer):
    """Why the collator of transformers is not taken as it is."""
    ours = masked(text, tokenizer, tmp_path)
    data = replace(ours, collate=transformers.DataCollatorForLanguageModeling(tokenizer))

    def make(folder):
        return trainer(folder, small("MaskedLM"), data, steps=4, save_steps=2)

    assert not resumed_is_whole(tmp_path, make, steps=4, at=2)


def test_training_masks_follow_from_the_batch_and_the_seed(tmp_path, text, tokenizer):
    data, other = masked(text, tokenizer, tmp_path), masked(text, tokenizer, tmp_path, seed=8)
    examples = [data.train[i] for i in range(8)]
    assert set(examples[0]) == {"input_ids"}
    first, again = data.collate(examples), data.collate(examples)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(data.collate(examples[::-1])["labels"].flip(0), first["labels"])
    assert not torch.equal(other.collate(examples)["labels"], first["labels"])
    assert data.fingerprint.differences(other.fingerprint) == ["seed 7 became 8"]


def test_what_is_hidden_is_distributed_as_by_transformers(tmp_path, text, tokenizer):
    data = masked(text, tokenizer, tmp_path)
    plain = load_data([text], tokenizer=tokenizer, vocabulary=VOCABULARY, block_size=BLOCK, seed=0, cache=tmp_path)
    torch.manual_seed(0)
    theirs = transformers.DataCollatorForLanguageModeling(tokenizer)

    def shares(collate, train):
        parts = []
        for start in range(0, len(train) - 8, 8):
            batch = collate([{"input_ids": train[i]["input_ids"]} for i in range(start, start + 8)])
            original = torch.stack([train[i]["input_ids"] for i in range(start, start + 8)])
            hidden = batch["labels"] != -100
            assert torch.equal(batch["labels"][hidden], original[hidden])
            assert torch.equal(batch["input_ids"][~hidden], original[~hidden])
            as_mask = batch["input_ids"][hidden] == tokenizer.mask_token_id
            kept = batch["input_ids"][hidden] == original[hidden]
            parts.append((hidden.float().mean(), as_mask.float().mean(), kept.float().mean()))
        return np.mean(parts, axis=0)

    np.testing.assert_allclose(shares(data.collate, data.train), [0.15, 0.8, 0.1], atol=0.02)
    np.testing.assert_allclose(shares(theirs, plain.train), [0.15, 0.8, 0.1], atol=0.02)


def test_held_out_masks_are_fixed_and_of_one_number(tmp_path, text, tokenizer):
    data = masked(text, tokenizer, tmp_path)
    other = masked(text, tokenizer, tmp_path, seed=8)
    for i in range(len(data.held_out)):
        block, again, elsewhere = data.held_out[i], data.held_out[i], other.held_out[i]
        for same in (again, elsewhere):
            assert all(torch.equal(block[name], same[name]) for name in block)
        assert int((block["labels"] != -100).sum()) == round(0.15 * BLOCK)
    collated = data.collate([data.held_out[0], data.held_out[1]])
    assert torch.equal(collated["labels"][1], data.held_out[1]["labels"])


def test_special_tokens_are_hidden_last(tmp_path, tokenizer):
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": ""}\n{"text": "x"}\n' * 200)  # two of three tokens are ends
    data = masked(path, tokenizer, tmp_path, block_size=9)
    for i in range(len(data.held_out)):
        labels = data.held_out[i]["labels"]
        assert not torch.isin(labels, torch.tensor(tokenizer.all_special_ids)).any()
        assert int((labels != -100).sum()) == 1
    path.write_text('{"text": ""}\n' * 100)
    nothing_else = masked(path, tokenizer, tmp_path, block_size=9).held_out[0]
    assert int((nothing_else["labels"] != -100).sum()) == 1


def test_the_held_out_loss_is_a_mean_over_hidden_tokens(tmp_path, text, tokenizer):
    """In batches of three, the last of which is smaller."""
    data = masked(text, tokenizer, tmp_path)
    assert len(data.held_out) % 3
    model = small("MaskedLM")
    made = trainer(tmp_path / "run", model, data, steps=1, save_steps=9, per_device_eval_batch_size=3)
    found = made.evaluate()["eval_loss"]
    assert made.evaluate()["eval_loss"] == found
    losses = []
    with torch.no_grad():
        for i in range(len(data.held_out)):
            block = data.held_out[i]
            logits = model.eval()(block["input_ids"][None]).logits[0].double()
            hidden = block["labels"] != -100
            losses += torch.nn.functional.cross_entropy(logits[hidden], block["labels"][hidden], reduction="none")
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_masked_refusals(tmp_path, text, tokenizer, words):
    for options, said in (
        ({"tokenizer": None}, "needs a tokenizer with a mask token, and there is no tokenizer"),
        ({"tokenizer": words}, "needs a tokenizer with a mask token, and .* has no mask token"),
        ({"vocabulary": 300}, "the tokenizer has 400 tokens and the model 300: it is another model's"),
        ({"probability": 1.0}, "with a probability between 0 and 1, not 1.0"),
    ):
        with pytest.raises(UsageError, match=said):
            masked(text, tokenizer, tmp_path, **options)
    assert masked(text, tokenizer, tmp_path, probability=0.3).fingerprint.differences(
        masked(text, tokenizer, tmp_path).fingerprint
    ) == ["task masked 0.3 became masked 0.15"]
    plain = load_data([text], tokenizer=tokenizer, vocabulary=VOCABULARY, block_size=BLOCK, seed=7, cache=tmp_path)
    assert plain.fingerprint.differences(masked(text, tokenizer, tmp_path).fingerprint) == [
        "task none became masked 0.15"
    ]
    assert len(list(tmp_path.glob("tokens-*"))) == 1


# Whole runs


@pytest.fixture(scope="module")
def kept_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(task, data, kept_tokenizer, **options):
    settings = {"learning_rate": 5e-3, "per_device_train_batch_size": 8, "save_steps": 2, "logging_steps": 1, "seed": 3}
    model = {
        "model_type": "roberta", "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": BLOCK + 2, "pad_token_id": 1,
    }  # fmt: skip
    given = {"tokenizer": kept_tokenizer, "model": model, "steps_total": 4, "decay": "alphadecay"} | options
    return Recipe(
        title="Tiny", source="this test", task=task, data=(str(data),), settings=settings | {"use_cpu": True}, **given
    )


def test_a_masked_model_begins_and_learns_to_classify_and_both_go_on_as_if_never_stopped(
    tmp_path, text, kept_tokenizer
):
    def cut_off_and_whole(made, name):
        begin(made, tmp_path / f"{name}-whole").train()
        cut = begin(made, tmp_path / name)
        cut.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
        result = prepare(Request(source=tmp_path / name)).train()
        files = [tmp_path / folder / "checkpoint-4" / "model.safetensors" for folder in (name, f"{name}-whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
        return result.held_out_after

    masked_loss = cut_off_and_whole(recipe("masked-lm", text, kept_tokenizer), "masked")  # the longest block that fits
    assert masked_loss["loss"] < np.log(VOCABULARY) + 0.5
    assert load_config(tmp_path / "masked").fingerprint.block_size == BLOCK
    start = {"start": str(tmp_path / "masked" / "checkpoint-4"), "model": {}}
    lines = recipe("classification", comments(tmp_path), kept_tokenizer, block_size=BLOCK, **start)
    found = cut_off_and_whole(lines, "lines")
    assert {"loss", "accuracy", "matthews"} <= set(found)
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "lines" / "checkpoint-4")
    assert saved.id2label == {0: "code", 1: "comment"}


def test_positions_of_roberta_begin_after_the_padding(text, kept_tokenizer):
    config = transformers.RobertaConfig(max_position_embeddings=514)
    made = recipe("masked-lm", text, kept_tokenizer)
    assert block_size(made, config) == 512
    assert block_size(made, transformers.BertConfig(max_position_embeddings=514)) == 514
    with pytest.raises(UsageError, match="--block-size 513 must be 2 to 512"):
        block_size(replace_record(made, block_size=513), config)
