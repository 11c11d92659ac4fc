"""The hub end to end, against a stand-in. In subprocesses: huggingface_hub reads HF_* on import."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import python
from distributed_files import save_chunks
from hub_stand_in import HubStandIn, Repo
from safetensors.numpy import save

SCRIPT = """
import json, sys
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SpecdiagError

def answer(location, **options):
    try:
        checkpoint = open_checkpoint(location, **options)
    except SpecdiagError as error:
        return {"error": type(error).__name__, "message": str(error)}
    source = checkpoint.source
    return {
        "source": str(source), "commit": source.commit, "revision": source.revision,
        "files": source.files, "ignored": source.ignored, "architecture": checkpoint.architecture,
        "base": source.base,
        "sums": {m.name: float(m.tensor.read(None).sum()) for m in checkpoint.matrices},
        "torch": "torch" in sys.modules,
    }

sys.stdout.write(json.dumps([answer(**request) for request in json.loads(sys.argv[1])]))
"""
QUERY = "model.layers.0.self_attn.q_proj.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"
WEIGHTS = save({QUERY: np.ones((64, 64), np.float32)})
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 64}).encode()
ONE_FILE = {
    "config.json": CONFIG,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"x" * 100,
    "README.md": b"hello",
}
ADAPTER_CONFIG = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}).encode()
ADAPTER = save(
    {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((1, 64), np.float32),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": np.ones((64, 1), np.float32),
    }
)
SHARDED = {
    "config.json": CONFIG,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {QUERY: "model-00001-of-00002.safetensors", KEY: "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": save({KEY: np.full((64, 64), 2, np.float32)}),
}


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    repos = {
        "org/one": Repo(dict(ONE_FILE), revisions=("main", "v1", "refs/pr/3")),
        "legacy": Repo(dict(ONE_FILE)),
        "org/sharded": Repo(dict(SHARDED)),
        "org/gated": Repo(dict(ONE_FILE), gated=True),
        "org/private": Repo(dict(ONE_FILE), private=True),
        "org/parts": Repo({f"unet/{name}": data for name, data in ONE_FILE.items()}),
        "org/adapter": Repo({"adapter_config.json": ADAPTER_CONFIG, "adapter_model.safetensors": ADAPTER}),
        "org/onnx": Repo({"model.onnx": b"ONNX", "model.int8.onnx": b"ONNX"}),
    }
    with HubStandIn(repos) as stand_in:
        yield stand_in


class Client:
    """Runs open_checkpoint in a process of its own, with an empty cache at first."""

    def __init__(self, hub: HubStandIn, home: Path) -> None:
        self.hub, self.home = hub, home

    def open(self, location: str, **options: str) -> dict[str, Any]:
        """Options in capitals are environment variables."""
        variables = {name: options.pop(name) for name in list(options) if name.isupper()}
        return self.open_each([{"location": location, **options}], variables)[0]

    def open_each(self, requests: list[dict[str, str]], variables: dict[str, str]) -> list[dict[str, Any]]:
        environment = self.hub.environment(self.home) | variables
        done = python(SCRIPT, json.dumps(requests), cwd=self.home, env=environment)
        assert "Traceback" not in done.stderr
        token = environment.get("HF_TOKEN")
        assert token is None or token not in done.stdout + done.stderr
        return json.loads(done.stdout)

    def fails(self, location: str, **options: str) -> str:
        answer = self.open(location, **options)
        assert answer.get("error") == "SourceError", answer
        message: str = answer["message"]
        assert "\n" not in message
        return message


@pytest.fixture
def client(hub: HubStandIn, tmp_path: Path) -> Client:
    return Client(hub, tmp_path)


def test_a_model_in_one_file(hub: HubStandIn, client: Client) -> None:
    answer = client.open("org/one")
    commit = hub.repos["org/one"].commit
    assert answer["sums"] == {QUERY: 4096.0}
    assert answer["source"] == f"org/one@{commit}"
    assert (answer["commit"], answer["revision"]) == (commit, None)
    assert answer["files"] == ["model.safetensors"]
    assert answer["ignored"] == ["pytorch_model.bin"]
    assert answer["architecture"] == "LlamaForCausalLM"
    assert answer["torch"] is False
    assert sorted(hub.downloads()) == ["config.json", "model.safetensors"]


def test_a_distributed_checkpoint_in_a_folder(hub: HubStandIn, client: Client, tmp_path: Path) -> None:
    query = torch.arange(64.0).reshape(8, 8)
    saved = save_chunks(tmp_path / "saved", {QUERY: query}, {QUERY: [((0, 0), (4, 8)), ((4, 0), (4, 8))]})
    files = {f"step-1/{path.name}": path.read_bytes() for path in saved.iterdir()}
    hub.repos["org/chunks"] = Repo(files | {"step-2/__0_0.distcp": b"x"})
    answer = client.open("org/chunks", file="step-1")
    assert answer["sums"] == {QUERY: 2016.0}
    assert answer["files"] == ["step-1/.metadata", "step-1/__0_0.distcp", "step-1/__1_0.distcp"]
    assert sorted(hub.downloads()) == sorted(files)
    assert "the save did not finish" in client.fails("org/chunks", file="step-2")


def test_an_adapter_and_its_base(hub: HubStandIn, client: Client) -> None:
    """W = 1 everywhere, s B A = 2: the base's commit is recorded with the sum."""
    alone, applied = client.open_each([{"location": "org/adapter"}, {"location": "org/adapter", "base": "org/one"}], {})
    assert (alone["files"], alone["base"]) == (["adapter_model.safetensors"], None)
    assert alone["sums"] == {QUERY: pytest.approx(128.0)}  # the one singular value of a matrix of twos, up to its sign
    assert applied["sums"] == {QUERY: 3 * 4096.0}
    assert applied["base"] == f"org/one@{hub.repos['org/one'].commit}"
    assert applied["source"] == f"org/adapter@{hub.repos['org/adapter'].commit}"
    assert applied["torch"] is False


def test_what_was_printed_can_be_typed_back_and_downloads_nothing(hub: HubStandIn, client: Client) -> None:
    source = str(client.open("org/one")["source"])
    hub.requests.clear()
    assert client.open(source)["sums"] == {QUERY: 4096.0}
    assert hub.downloads() == []


WAYS = {
    "legacy": None,
    "hf://legacy": None,
    "org/one@v1": "v1",
    "org/one@refs/pr/3": "refs/pr/3",
    "hf://org/one@v1/model.safetensors": "v1",
    "{url}/org/one": None,
    "{url}/org/one/tree/v1": "v1",
    "{url}/org/one/blob/main/model.safetensors": "main",
    "{url}/org/one/resolve/main/model.safetensors?download=true": "main",
    "https://huggingface.co/org/one": None,
    "huggingface.co/org/one/tree/v1": "v1",
    "https://hf.co/legacy": None,
}


def test_ways_to_name_a_model(hub: HubStandIn, client: Client) -> None:
    answers = client.open_each([{"location": way.format(url=hub.url)} for way in WAYS], {})
    for (way, revision), answer in zip(WAYS.items(), answers, strict=True):
        assert answer.get("sums") == {QUERY: 4096.0}, (way, answer)
        assert answer["revision"] == revision, way
        assert answer["files"] == ["model.safetensors"], way


def test_revision_option(client: Client) -> None:
    assert client.open("org/one", revision="v1")["revision"] == "v1"


def test_shards_through_their_index(hub: HubStandIn, client: Client) -> None:
    answer = client.open("org/sharded")
    assert answer["sums"] == {QUERY: 4096.0, KEY: 8192.0}
    assert answer["files"] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert len(hub.downloads()) == 4


def test_missing_shard(hub: HubStandIn, client: Client) -> None:
    del hub.repos["org/sharded"].files["model-00002-of-00002.safetensors"]
    assert "lacks model-00002-of-00002.safetensors" in client.fails("org/sharded")


def test_folder_of_a_repository(hub: HubStandIn, client: Client) -> None:
    assert "only in its folders unet" in client.fails("org/parts")
    for location in ("hf://org/parts/unet", f"{hub.url}/org/parts/tree/main/unet"):
        answer = client.open(location)
        assert answer["files"] == ["unet/model.safetensors"]
        assert answer["architecture"] == "LlamaForCausalLM"


REFUSALS = {
    "org/nowhere": "neither a path 'org/nowhere' nor a public model",
    "org/private": "for a private model set HF_TOKEN",
    "org/gated": "org/gated is gated: accept the licence at {url}/org/gated and set HF_TOKEN",
    "org/one@v9": "org/one has no revision 'v9'",
    "org/onnx": "holds weights only as model.int8.onnx, model.onnx, not supported: it renames",
    "hf://org/onnx/model.onnx": "stores model.onnx in a format that is not supported: it renames",
    "a--b/c": "neither a path that exists nor a hub model",
    "https://someone:hf_secret@huggingface.co/org/one/commits": "'https://huggingface.co/org/one/commits'",
}


def test_refusals_in_one_sentence(hub: HubStandIn, client: Client) -> None:
    answers = client.open_each([{"location": location} for location in REFUSALS], {})
    for (location, sentence), answer in zip(REFUSALS.items(), answers, strict=True):
        assert answer.get("error") == "SourceError", (location, answer)
        assert sentence.format(url=hub.url) in answer["message"]
        assert "\n" not in answer["message"]
        assert "hf_secret" not in answer["message"]
    assert not any(name.endswith(".onnx") for name in hub.downloads())


def test_file_that_is_not_there(client: Client) -> None:
    answer = client.open("hf://org/one/nothing.safetensors")
    assert answer["error"] == "UsageError"
    assert answer["message"] == (
        "org/one has no file 'nothing.safetensors'; it has model.safetensors, pytorch_model.bin"
    )


def test_token(hub: HubStandIn, client: Client, tmp_path: Path) -> None:
    refused = {"HF_HOME": str(tmp_path / "other"), "HF_TOKEN": "hf_refused"}
    assert "org/gated is gated" in client.fails("org/gated", **refused)
    assert "HF_TOKEN" in client.fails("org/private", **refused)
    answers = client.open_each([{"location": "org/gated"}, {"location": "org/private"}], {"HF_TOKEN": hub.granted})
    assert [answer.get("sums") for answer in answers] == [{QUERY: 4096.0}] * 2


def test_interrupted_download(hub: HubStandIn, client: Client) -> None:
    repo = hub.repos["org/one"]
    repo.cut_after = len(WEIGHTS) - 100
    message = client.fails("org/one")
    assert "was interrupted" in message
    repo.cut_after = None
    assert client.open("org/one")["sums"] == {QUERY: 4096.0}


def test_connection_that_drops_once(hub: HubStandIn, client: Client) -> None:
    repo = hub.repos["org/one"]
    repo.cut_after, repo.cuts = len(WEIGHTS) - 100, 1
    assert client.open("org/one")["sums"] == {QUERY: 4096.0}
    assert hub.downloads().count("model.safetensors") == 2


def test_offline(hub: HubStandIn, client: Client) -> None:
    message = client.fails("org/one", HF_HUB_OFFLINE="1")
    assert "org/one is not complete in the hub's cache and HF_HUB_OFFLINE is set" in message
    client.open("org/one")
    hub.requests.clear()
    assert client.open("org/one", HF_HUB_OFFLINE="1")["sums"] == {QUERY: 4096.0}
    assert hub.requests == []


def test_half_a_model_offline(client: Client) -> None:
    client.open("hf://org/sharded/model-00001-of-00002.safetensors")
    assert "not complete in the hub's cache" in client.fails("org/sharded", HF_HUB_OFFLINE="1")


def test_unreachable_endpoint(client: Client) -> None:
    client.open("org/one")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert client.open("org/one", **nowhere)["sums"] == {QUERY: 4096.0}
    assert "http://127.0.0.1:9 cannot be reached" in client.fails("org/sharded", **nowhere)


def test_answer_that_nobody_expects(hub: HubStandIn, client: Client) -> None:
    hub.repos["org/one"].status = 418
    assert f"{hub.url} answered 418 for org/one: try again later" in client.fails("org/one")
