"""Labelled texts: the files they come in, what is held out, their labels and columns, and a model that learns them."""

import pytest
import torch
import transformers
from task_data import BLOCK, comments, resumed_is_whole, small, table, trainer, write
from tokenizers import Tokenizer, models

from specdiag import SourceError, UsageError
from specdiag.train.tasks.glue import GLUE, load_classification

pytestmark = pytest.mark.usefixtures("one_thread")


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
        ("classification", [], {}, UsageError, "name the texts to classify with data=PATH, or a task of GLUE"),
        ("sst2", file("a.csv", a), {"columns": ["text"]}, UsageError, "one or two columns with text .* not text"),
        ("sst2", file("b.csv", a), {}, SourceError, "has columns text, label and not sentence, label: name the col"),
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
