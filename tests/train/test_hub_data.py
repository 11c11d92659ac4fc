"""Datasets of the hub, against a stand-in. In subprocesses: huggingface_hub and datasets read HF_* on import."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from command import forked_python, start
from hub_stand_in import HubStandIn, Repo

from specdiag import SourceError, UsageError
from specdiag.train.data.hub import HubData, locate, pin
from specdiag.train.data.tokens import load_data

SCRIPT = """
import json, sys, time
from pathlib import Path
import datasets.config, torch
from specdiag.errors import SpecdiagError
from specdiag.train.data.tokens import load_data
from specdiag.train.data.hub import pin

time.sleep = lambda seconds: None  # between tries
datasets.config.STREAMING_READ_MAX_RETRIES = 1

def answer(path, cache, max_tokens=None, block_size=10, pinned=False):
    try:
        paths = pin([path]) if pinned else [path]
        data = load_data(
            paths, tokenizer=None, vocabulary=256, block_size=block_size, seed=0, cache=Path(cache), max_tokens=max_tokens
        )
    except SpecdiagError as error:
        return {"error": type(error).__name__, "message": str(error)}
    blocks = {int(i): part[k]["input_ids"] for part in (data.train, data.held_out) for k, i in enumerate(part.indices)}
    return {
        "paths": paths, "n_tokens": data.n_tokens, "tokens": torch.cat([blocks[i] for i in sorted(blocks)]).tolist(),
        "files": [[f.name, f.size, f.ends, f.commit] for f in data.fingerprint.files],
        "max_tokens": data.fingerprint.max_tokens,
    }

sys.stdout.write(json.dumps([answer(**request) for request in json.loads(sys.argv[1])]))
"""


def documents(config: str, shard: int) -> list[str]:
    return [f"{config} {shard}: the {i}th document. " for i in range(200)]


def jsonl(config: str, shard: int) -> bytes:
    return "".join(json.dumps({"url": "x", "text": text}) + "\n" for text in documents(config, shard)).encode()


def parquet(columns: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


LABELLED = """
from specdiag.train.tasks.glue import load_classification
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

words = Tokenizer(models.WordLevel({"[PAD]": 0, "?": 1}, unk_token="?"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="?")

def answer(cache, **request):
    try:
        data = load_classification(**request, tokenizer=tokenizer, max_length=16, seed=0)
    except SpecdiagError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "labels": [[e["labels"] for e in (part[i] for i in range(len(part)))] for part in (data.train, data.held_out)],
        "names": data.labels, "files": [[f.name, f.commit] for f in data.fingerprint.files],
        "lengths": [len(data.train[i]["input_ids"]) for i in range(2)],
    }

sys.stdout.write(json.dumps([answer(**request) for request in json.loads(sys.argv[1])]))
"""


def with_names(columns: dict[str, list[Any]], names: list[str]) -> bytes:
    """As datasets writes it: numbers, and the names of the classes in the schema."""
    features = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    features["label"] = {"names": names, "_type": "ClassLabel"}
    table = pyarrow.table(columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


GLUE_CARD = b"""---
configs:
- config_name: mrpc
  data_files: [{split: train, path: mrpc/train.parquet}, {split: validation, path: mrpc/validation.parquet}]
- config_name: mnli
  data_files:
  - {split: train, path: mnli/train.parquet}
  - {split: validation_matched, path: mnli/matched.parquet}
  - {split: validation_mismatched, path: mnli/mismatched.parquet}
- config_name: sst2
  data_files: [{split: train, path: sst2/train.parquet}, {split: test, path: sst2/test.parquet}]
---
"""


def glue() -> dict[str, bytes]:
    def pairs(labels: list[int], names: list[str], columns: tuple[str, ...] = ("sentence1", "sentence2")) -> bytes:
        texts = {name: [f"{i} {name} {'x ' * i}" for i in range(len(labels))] for name in columns}
        return with_names({**texts, "label": labels}, names)

    equivalent, entailed = ["not_equivalent", "equivalent"], ["entailment", "neutral", "contradiction"]
    genres = {"train": [0, 1, 2, 1], "matched": [2, 0], "mismatched": [1, 1, 1]}
    files = {f"mnli/{n}.parquet": pairs(held, entailed, ("premise", "hypothesis")) for n, held in genres.items()}
    return files | {
        "README.md": GLUE_CARD,
        "mrpc/train.parquet": pairs([1, 0, 1], equivalent),
        "mrpc/validation.parquet": pairs([0, 1], equivalent),
        "sst2/train.parquet": pairs([1, 0, 1], ["negative", "positive"], ("sentence",)),
        "sst2/test.parquet": pairs([-1, -1], ["negative", "positive"], ("sentence",)),
    }


CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en/train-*.jsonl}, {split: validation, path: en/validation.jsonl}]
- config_name: de
  data_files: [{split: train, path: de/train-*.jsonl}]
---
"""


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    two = {"README.md": CARD, "en/validation.jsonl": jsonl("judged", 0)}
    two |= {f"{c}/train-{i}.jsonl": jsonl(c, i) for c in ("en", "de") for i in (0, 1)}
    repos = {
        "datasets/org/two": Repo(two, revisions=("main", "v1")),
        "datasets/org/one": Repo({"data/train-0.parquet": parquet({"words": documents("one", 0)})}),
        "datasets/org/zipped": Repo({"train.json.gz": gzip.compress(jsonl("zipped", 0))}),
        "datasets/org/lines": Repo({"train.txt": b"first line\nsecond line\n" * 5}),
        "datasets/org/gated": Repo({"train.jsonl": jsonl("x", 0)}, gated=True),
        "datasets/org/private": Repo({"train.jsonl": jsonl("x", 0)}, private=True),
        "datasets/org/empty": Repo({"model.onnx": b"x"}),
        "datasets/org/columns": Repo({"train.jsonl": b'{"one": "a", "other": "b"}\n' * 9}),
        "datasets/org/broken": Repo({"train.jsonl": b'{"text": "a"}\n{broken\n'}),
        "datasets/nyu-mll/glue": Repo(glue()),
        "datasets/org/stars": Repo(
            {
                "train.parquet": with_names(
                    {"text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}, ["1", "0"]
                )
            }
        ),
        "datasets/org/teapot": Repo({"train.jsonl": jsonl("x", 0)}, status=418),
    }
    with HubStandIn(repos) as stand_in:
        yield stand_in


class Client:
    """Loads data in a process of its own, with an empty cache at first."""

    def __init__(self, hub: HubStandIn, home: Path) -> None:
        self.hub, self.tokens = hub, home / "run"
        self.tokens.mkdir()
        self.environment = hub.environment(home / "home")

    def start(self, requests: list[dict[str, Any]]) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", *self.program(requests)]
        return start(line, env=self.environment, cwd=self.tokens, stdout=subprocess.PIPE)

    def load_each(self, requests: list[dict[str, Any]], **variables: str) -> list[dict[str, Any]]:
        done = forked_python(*self.program(requests), env=self.environment | variables, cwd=self.tokens)
        token = variables.get("HF_TOKEN")
        assert token is None or token not in done.stdout + done.stderr
        return json.loads(done.stdout)

    def program(self, requests: list[dict[str, Any]]) -> list[str]:
        script = SCRIPT.partition("\ndef answer")[0] + LABELLED if "task" in requests[0] else SCRIPT
        return [script, json.dumps([{"cache": str(self.tokens), **request} for request in requests])]

    def load(self, path: str, max_tokens: int | None = 1000, **options: Any) -> dict[str, Any]:
        variables = {name: options.pop(name) for name in list(options) if name.isupper()}
        return self.load_each([{"path": path, "max_tokens": max_tokens, **options}], **variables)[0]


@pytest.fixture
def client(hub: HubStandIn, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


REFUSALS = {
    "org/nowhere:en/train": "neither a path 'org/nowhere:en/train' nor a public dataset org/nowhere on {url}",
    "org/private": "for a private one set HF_TOKEN",
    "org/gated": "org/gated is gated: accept the licence at {url}/datasets/org/gated and set HF_TOKEN",
    "org/two@v9:en": "org/two has no revision 'v9': see {url}/datasets/org/two/tree/main",
    "org/two": "Config name is missing. Please pick one among the available configs: ['en', 'de']",
    "org/two:fr": "BuilderConfig 'fr' not found. Available: ['en', 'de']",
    "org/two:en/tset": "Bad split: tset. Available splits: ['train', 'validation']",
    "org/empty": "holds no files that datasets can read",
    "org/columns": "has no column 'text' with text, but one, other",
    "org/broken": "cannot be read",
    "org/teapot": "{url} answered 418 for org/teapot: try again later",
}


def test_refusals_in_one_sentence(hub: HubStandIn, client: Client) -> None:
    answers = client.load_each([{"path": path, "max_tokens": 1000} for path in REFUSALS])
    for (path, sentence), answer in zip(REFUSALS.items(), answers, strict=True):
        assert answer.get("error") == "SourceError", (path, answer)
        assert sentence.format(url=hub.url) in answer["message"], path
        assert "\n" not in answer["message"]
    assert list(client.tokens.iterdir()) == []


def test_documents_in_stored_order_until_there_are_enough(hub: HubStandIn, client: Client) -> None:
    text = "".join(documents("en", 0)).encode()
    answer = client.load("org/two:en")
    commit = hub.repos["datasets/org/two"].commit
    assert answer["tokens"] == list(text[:1000])
    assert answer["n_tokens"] == answer["max_tokens"] == 1000
    assert answer["files"] == [["org/two:en", 0, "", commit]]
    assert not {name for name in hub.downloads() if name.startswith(("de", "en/train-1", "en/val"))}
    assert sorted(path.suffix for path in client.tokens.iterdir()) == [".cache", ".sha256"]


def test_every_kind_of_file_and_every_part(client: Client) -> None:
    ways = {
        "org/one": documents("one", 0),
        "org/zipped": documents("zipped", 0),
        "org/lines": ["first line\nsecond line\n" * 5],
        "org/two@v1:de": documents("de", 0) + documents("de", 1),
        "org/two:en/validation": documents("judged", 0),
    }
    answers = client.load_each([{"path": path, "max_tokens": 1_000_000} for path in ways])
    for (path, expected), answer in zip(ways.items(), answers, strict=True):
        tokens = list("".join(expected).encode())
        assert answer.get("tokens") == tokens[: len(tokens) // 10 * 10], (path, answer)


def test_what_is_pinned_is_read_again_without_the_hub(hub: HubStandIn, client: Client) -> None:
    first = client.load("org/two:en", pinned=True)
    assert first["paths"] == [f"org/two@{hub.repos['datasets/org/two'].commit}:en"]
    hub.repos["datasets/org/two"].files["NEWS"] = b"and so another commit"
    hub.requests.clear()
    assert client.load(first["paths"][0], HF_HUB_OFFLINE="1") == first
    assert hub.requests == []
    assert client.load("org/two:en")["files"] != first["files"]


def test_a_dropped_connection_is_taken_up_again_or_leaves_nothing(hub: HubStandIn, client: Client) -> None:
    repo = hub.repos["datasets/org/two"]
    repo.files["en/train-0.jsonl"] = jsonl("en", 0) * 400
    repo.cut_after, repo.cuts = 3_000_000, 1
    answer = client.load("org/two:en", 2_000_000)
    assert repo.cuts == 0
    assert answer.get("tokens") == list("".join(documents("en", 0) * 400).encode()[:2_000_000]), answer
    repo.cuts = sys.maxsize
    for path in client.tokens.iterdir():
        path.unlink()
    failed = client.load("org/two:en", 2_000_000)
    assert f"{hub.url} cannot be reached for org/two:en, or broke off" in failed["message"]
    assert list(client.tokens.iterdir()) == []


def test_a_kill_leaves_nothing_that_is_taken_for_the_data(hub: HubStandIn, client: Client) -> None:
    hub.repos["datasets/org/two"].files["en/train-0.jsonl"] = jsonl("en", 0) * 2000
    for number in (signal.SIGINT, signal.SIGKILL):
        process = client.start([{"path": "org/two:en", "max_tokens": 50_000_000}])
        while not any(path.stat().st_size for path in client.tokens.glob("*.part")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate()
        left = {path.suffix for path in client.tokens.iterdir()}
        assert left == (set() if number == signal.SIGINT else {".part"})
    assert client.load("org/two:en")["tokens"] == list("".join(documents("en", 0)).encode()[:1000])
    assert {path.suffix for path in client.tokens.iterdir()} == {".part", ".cache", ".sha256"}


def test_token_and_connection(hub: HubStandIn, client: Client) -> None:
    offline = "org/one is on the hub and HF_HUB_OFFLINE is set: unset it"
    assert offline in client.load("org/one", HF_HUB_OFFLINE="1")["message"]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "http://127.0.0.1:9 cannot be reached for org/one" in client.load("org/one", **nowhere)["message"]
    both = [{"path": path, "max_tokens": 1000} for path in ("org/gated", "org/private")]
    assert [answer["n_tokens"] for answer in client.load_each(both, HF_TOKEN=hub.granted)] == [1000, 1000]


def test_how_a_dataset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in {
        "org/name": HubData("org/name"),
        "org/name:20231101.en": HubData("org/name", config="20231101.en"),
        "org/name:en/train": HubData("org/name", config="en", split="train"),
        "org/name:/validation": HubData("org/name", split="validation"),
        "org/na.me@refs/pr/3:en": HubData("org/na.me", "refs/pr/3", "en"),
        f"org/name@{'0' * 40}": HubData("org/name", "0" * 40),
    }.items():
        assert locate(text) == expected
        assert str(expected) == text
        assert not isinstance(located := locate(text), Path)
        assert located.pinned is ("0000" in text)
    for text in ("name", "data/train.jsonl", "./org/name", "/org/name", "org/name/", "org/name:en/a/b", "a/b/c", ""):
        with pytest.raises(SourceError, match="a dataset on the hub is named org/name"):
            locate(text) if text else locate("no such")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert locate("org/name") == Path("org/name")
    assert pin(["org/name", f"org/other@{'1' * 40}"]) == [str(tmp_path / "org" / "name"), f"org/other@{'1' * 40}"]


def test_how_much_of_a_dataset_is_to_be_said(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer": None, "vocabulary": 256, "block_size": 10, "seed": 0, "cache": tmp_path}
    with pytest.raises(UsageError, match=r"no path org/name:en here, and as a dataset of the hub it .* max_tokens=N"):
        load_data(["org/name:en"], **options)
    (tmp_path / "tokens.bin").write_bytes(b"x" * 100)
    with pytest.raises(UsageError, match="not together with text"):
        load_data(["org/name", tmp_path / "tokens.bin"], **options, max_tokens=5)


def test_glue_by_the_names_of_its_classes(hub: HubStandIn, client: Client) -> None:
    requests: list[dict[str, Any]] = [
        {"task": "mrpc"},
        {"task": "mnli", "paths": ["nyu-mll/glue@main"]},
        {"task": "classification", "paths": ["org/stars"]},
        {"task": "rte", "paths": ["nyu-mll/glue:mrpc"]},
        {"task": "sst2"},
        {"task": "mrpc", "paths": ["nyu-mll/glue:mrpc/train"]},
        {"task": "mrpc", "paths": ["nyu-mll/glue:wnli"]},
    ]
    mrpc, mnli, stars, other, unlabelled, split, config = client.load_each(requests)
    commit = hub.repos["datasets/nyu-mll/glue"].commit
    assert mrpc == {
        "labels": [[1, 0, 1], [0, 1]],
        "names": ["not_equivalent", "equivalent"],
        "files": [["nyu-mll/glue:mrpc", commit]],
        "lengths": [4, 6],
    }
    assert mnli["labels"] == [[0, 1, 2, 1], [2, 0]]
    assert stars["names"] == ["1", "0"]
    assert sorted(map(len, stars["labels"])) == [4, 36]
    assert sorted(stars["labels"][0] + stars["labels"][1]) == [0] * 20 + [1] * 20
    for answer, sentence in (
        (other, "has the label 'equivalent', and rte has the classes entailment, not_entailment"),
        (unlabelled, "row 1 of nyu-mll/glue:sst2, test has the label -1, and sst2 has the classes negative"),
        (split, "names a split, and training takes that of its name: leave out /train"),
        (config, "BuilderConfig 'wnli' not found. Available: ['mrpc', 'mnli', 'sst2']): name a part as"),
    ):
        assert sentence in answer["message"]
    hub.requests.clear()
    (again,) = client.load_each([{"task": "mrpc", "paths": [f"nyu-mll/glue@{commit}:mrpc"]}], HF_HUB_OFFLINE="1")
    assert (again, hub.requests) == (mrpc, [])
