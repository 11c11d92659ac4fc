"""Zero-shot accuracy by lm-eval: a task of our own over a local file, for the real ones are on the hub."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from plain_run import BLOCK, library_text, plain_trainer

from specdiag import SourceError
from specdiag.train.data.byte_tokenizer import byte_tokenizer
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

ROOT = Path(__file__).parents[2]
QUESTIONS, CONTEXT, ANSWER = 24, 20, 6
POSTER = """
Uniform 20.22 46.72 67.68 32.94 18.8 49.41 54.74 41.50
AdaDecay 19.20 46.72 66.97 32.96 18.0 51.54 56.36 41.68
AWD 19.18 46.34 66.65 31.37 18.0 51.07 57.25 41.41
AlphaDecay 20.90 48.86 68.44 34.16 19.80 50.59 60.70 43.35
"""
TASK_FILE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def load():
    spec = importlib.util.spec_from_file_location("zero_shot", ROOT / "benchmarks" / "zero_shot.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["zero_shot"] = module
    spec.loader.exec_module(module)
    return module


zero_shot = load()
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is not installed: pip install 'spectral-diagnostics[eval]'",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A plain Trainer's run, and one of ours that goes on from it; neither has a tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    text = library_text(folder)
    plain_trainer(folder / "plain", text, folder).train()
    ours = Request(source=folder / "plain" / "checkpoint-2", data=[text], out=folder / "ours", decay="uniform")
    prepare(ours).train()
    return folder


@pytest.fixture(scope="module")
def questions(runs):
    """How real text goes on: the true bytes and three pieces from elsewhere in it."""
    text = re.sub(r"[^!-~]+", " ", (runs / "library.txt").read_text())
    starts = range(100, 100 + 97 * QUESTIONS, 97)
    found = []
    for number, start in enumerate(starts):
        end, label = start + CONTEXT, number % 4
        choices = [text[end + 1000 * k :][:ANSWER] for k in (1, 2, 3)]
        choices.insert(label, text[end:][:ANSWER])
        found.append({"query": text[start:end], "choices": choices, "label": label})
    return found


@pytest.fixture(scope="module")
def tasks(runs, questions):
    """Two tasks of them: all questions, and the first half."""
    folder = runs / "tasks"
    folder.mkdir()
    for name, n in (("goes_on", QUESTIONS), ("first_half", QUESTIONS // 2)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions[:n]))
        (folder / f"{name}.yaml").write_text(TASK_FILE.format(name=name, data=folder / f"{name}.jsonl"))
    return folder


@torch.no_grad()
def naive(checkpoint, questions):
    """1 for each question whose true answer has the largest sum of log probabilities."""
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint).eval()
    scores = []
    for question in questions:
        sums = []
        for choice in question["choices"]:
            ids = torch.tensor([list((question["query"] + choice).encode())])
            logs = model(ids).logits.log_softmax(-1)[0, :-1]
            sums.append(sum(logs[i - 1, ids[0, i]].item() for i in range(CONTEXT, CONTEXT + ANSWER)))
        scores.append(float(max(range(4), key=sums.__getitem__) == question["label"]))
    return scores


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_scores_of_runs_are_those_of_a_plain_loop_over_the_questions(runs, questions, tasks, capsys):
    ours = {"All": zero_shot.Task("goes_on"), "Half": zero_shot.Task("first_half")}
    found = {}
    for source in (str(runs / "ours"), str(runs / "plain" / "checkpoint-2")):
        if "plain" in source:
            byte_tokenizer().save_pretrained(source)
        model, tokenizer = zero_shot.model_of(source)
        scores, said = zero_shot.evaluate(model, tokenizer, ours, include=tasks)
        found[source] = model, scores, said
        assert scores["All"] == naive(model, questions)
        assert scores["Half"] == scores["All"][: QUESTIONS // 2]
        mean, error = zero_shot.summary(scores)["All"]
        assert said["goes_on"]["acc,none"] == pytest.approx(mean / 100)
        assert said["goes_on"]["acc_stderr,none"] == pytest.approx(error / 100)
    assert [Path(model).name for model, _, _ in found.values()] == ["checkpoint-6", "checkpoint-2"]
    printed = zero_shot.table({source: scores for source, (_, scores, _) in found.items()}, ours)
    assert [line.split()[0] for line in printed.splitlines()] == ["task", "All", "Half", "Avg."]
    assert printed.splitlines()[1].count("±") == 3
    record = zero_shot.record(found, ours)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["tasks"]["All"] == {"lm_eval": "goes_on", "metric": "acc", "origin": "reconstructed", "n": QUESTIONS}
    assert capsys.readouterr().out == ""


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_an_answer_longer_than_the_model_sees_is_refused(runs, tasks):
    long = {"query": "a", "choices": ["b" * (BLOCK + 1), "c"], "label": 0}
    (tasks / "goes_on.jsonl").write_text((json.dumps(long) + "\n") * 2)
    with pytest.raises(SourceError, match=f"its model has {BLOCK} positions, and an answer that is longer"):
        zero_shot.evaluate(
            *zero_shot.model_of(str(runs / "ours")), {"All": zero_shot.Task("goes_on")}, include=tasks, device="cpu"
        )


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    marker = tmp_path / "it ran"
    (tmp_path / "own.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Own: ...\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="cannot be loaded"):
        zero_shot.evaluate(str(tmp_path), byte_tokenizer())
    config["auto_map"]["AutoTokenizer"] = ["own.Own", "own.Own"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "Own"}))
    with pytest.raises(SourceError, match="cannot be opened"):
        zero_shot.model_of(str(tmp_path))
    assert not marker.exists()


def test_the_average_is_the_posters():
    for line in POSTER.strip().splitlines():
        *scores, average = map(float, line.split()[1:])
        assert len(scores) == len(zero_shot.TASKS)
        found = zero_shot.summary({label: [v / 100, v / 100] for label, v in zip(zero_shot.TASKS, scores, strict=True)})
        assert found["Avg."][0] == pytest.approx(average, abs=0.005)


def test_errors_go_over_questions_and_of_differences_over_pairs():
    first, second = {"A": [1.0, 0.0, 1.0, 0.0], "B": [0.0, 1.0]}, {"A": [1.0, 0.0, 1.0, 1.0], "B": [1.0, 1.0]}
    assert zero_shot.summary(first)["A"] == (50, pytest.approx(100 * (1 / 3) ** 0.5 / 2))
    assert zero_shot.summary(first)["B"] == (50, pytest.approx(50))
    assert zero_shot.difference(second, first)["A"] == (25, pytest.approx(25))
    average, error = zero_shot.difference(second, first)["Avg."]
    assert (average, error) == (37.5, pytest.approx((25**2 + 50**2) ** 0.5 / 2))


def test_the_table_names_metric_and_number_and_takes_the_first_run_off():
    runs = {
        "a": {label: [0.0, 1.0] for label in zero_shot.TASKS},
        "b": {label: [1.0, 1.0] for label in zero_shot.TASKS},
    }
    lines = zero_shot.table(runs).splitlines()
    assert lines[0].split("  ")[-1] == "less the first"
    assert lines[1].split() == [
        "ARC-c",
        "acc",
        "2",
        "50.00",
        "±",
        "50.00",
        "100.00",
        "±",
        "0.00",
        "+50.00",
        "±",
        "50.00",
    ]
    assert [line.split()[0] for line in lines[1:]] == [*zero_shot.TASKS, "Avg."]
    assert "less" not in zero_shot.table({"a": runs["a"]})
    assert zero_shot.table(runs | {"c": runs["a"]}).splitlines()[0].endswith("b less the first  c less the first")


def test_what_is_no_model_is_said(runs, tmp_path, capsys):
    with pytest.raises(SourceError, match="checkpoint-6' has no tokenizer and its run does not say that bytes are"):
        zero_shot.model_of(str(runs / "plain"))
    with pytest.raises(SourceError, match="holds no checkpoint-N and no weights"):
        zero_shot.model_of(str(tmp_path))
    with pytest.raises(SourceError, match="is no folder and no hub id"):
        zero_shot.model_of("runs/mine/checkpoint-6")
    shutil.copytree(runs / "ours" / "checkpoint-6", tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / "scheduler.pt").unlink()
    with pytest.raises(SourceError, match="has no complete checkpoint"):
        zero_shot.model_of(str(tmp_path))
    assert "checkpoint-6" in capsys.readouterr().err
    (tmp_path / "checkpoint-6").rename(tmp_path / "checkpoint-8")
    for file in (runs / "ours").glob("*.toml"):
        shutil.copy(file, tmp_path)
    shutil.copytree(runs / "ours" / "checkpoint-4", tmp_path / "checkpoint-4")
    model, tokenizer = zero_shot.model_of(str(tmp_path))
    assert Path(model).name == "checkpoint-4"
    assert tokenizer("é")["input_ids"] == [0xC3, 0xA9]


def test_the_make_target_runs_the_command():
    """The command line as make would run it, from an environment that is there already."""
    made = subprocess.run(
        ["make", "-n", "zero-shot", "RUN=runs/a org/name"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (command,) = [line for line in made.stdout.splitlines() if "benchmarks/zero_shot.py" in line]
    python, script, *arguments = shlex.split(command)
    assert python.endswith("bin/python")
    assert (ROOT / script).is_file()
    given = zero_shot.parser().parse_args(arguments)
    assert given.sources == ["runs/a", "org/name"]
    refused = subprocess.run(["make", "-n", "zero-shot"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "RUN=" in refused.stderr


def test_mistakes_end_with_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^zero_shot\.py: .* holds no checkpoint-N and no weights$"):
        zero_shot.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="cannot be written: name another file with --out"):
        zero_shot.main([str(tmp_path), "--out", str(tmp_path / "nowhere" / "file.json")])
    with pytest.raises(SystemExit):
        zero_shot.main([str(tmp_path), "--limit", "1"])
    said = capsys.readouterr()
    assert "--limit 1 must be at least 2" in said.err
    assert said.out == ""


@needs_lm_eval
def test_the_command_prints_the_table_and_saves_beside_the_run(runs, capsys, monkeypatch):
    asked = []

    def evaluate(model, tokenizer, **options):
        asked.append((Path(model).parent.name, len(tokenizer), options))
        sys.stdout.write("talk")
        return {label: [0.0, 1.0, float(len(asked))] for label in zero_shot.TASKS}, {}

    monkeypatch.setattr(zero_shot, "evaluate", evaluate)
    byte_tokenizer().save_pretrained(runs / "plain")
    with pytest.raises(SystemExit, match="holds no checkpoint-N"):
        zero_shot.main([str(runs / "ours"), str(runs)])
    assert asked == []
    zero_shot.main([str(runs / "ours"), str(runs / "plain"), "--batch-size", "auto"])
    said, options = capsys.readouterr(), {"device": "auto", "batch_size": "auto", "limit": None}
    assert asked == [("ours", 256, options), ("plain", 256, options)]
    assert said.out.startswith("task  ")
    assert len(said.out.splitlines()) == 9
    assert "talk" in said.err
    held = json.loads((runs / "ours" / "zero_shot.json").read_text())
    assert list(held["runs"]) == [str(runs / "ours"), str(runs / "plain")]
    assert held["runs"][str(runs / "plain")]["less_the_first"]["Avg."]["percent"] == pytest.approx(100 / 3)
    assert held["tasks"]["OBQA"]["metric"] == "acc"
    assert prepare(Request(source=runs / "ours", extend=1)).step == 6
