"""A list of models of the hub: streamed, with few connections, in bounded memory, each audited once a commit."""

from __future__ import annotations

import json
from pathlib import Path

import hub_stand_in
import numpy as np
import pytest
from audited_models import heavy, name
from cached_results import entries
from command import invoke, start, words
from fleets import rows
from hub_stand_in import HubStandIn, Repo
from safetensors.numpy import save, save_file

import specdiag.auditing.audit as library

CONFIG = json.dumps({"model_type": "llama", "tie_word_embeddings": True}).encode()
SHARED = {name(layer, "self_attn.q_proj"): heavy(layer, (256, 256)).astype("f4") for layer in range(2)}


def repo(seed: int, **more) -> Repo:
    own = {name(layer, "self_attn.k_proj"): heavy(seed + 50 * layer, (256, 256)).astype("f4") for layer in range(2)}
    state = SHARED | own
    return Repo({"config.json": CONFIG, "model.safetensors": save(state)}, **more)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECDIAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with HubStandIn({}) as hub:
        hub.replace_the_real_one(monkeypatch)
        yield hub


def run(*sources, code):
    Path("models.txt").write_text("\n".join(sources))
    done = invoke("audit", "--from", "models.txt", "-f", "parquet", "-o", "fleet.parquet", "--jobs", "2")
    assert done.exit_code == code, done.stderr
    return done


def models():
    return {row["source"]: row for row in rows(Path("fleet.parquet"), "model")}


def test_models_are_streamed_and_those_that_cannot_be_have_a_row(hub, tmp_path):
    hub.repos |= {
        "org/good": repo(7),
        "org/torch": Repo({"config.json": CONFIG, "pytorch_model.bin": b"x"}),
        "org/gated": repo(8, gated=True),
        "org/private": repo(9, private=True),
        "org/broken": Repo({"config.json": CONFIG, "model.safetensors": save(SHARED)[:1000]}),
    }
    run("org/good", "org/good@main", "org/torch", "org/gated", "org/private", "org/missing", "org/broken",
        "org/good@v9", code=3)  # fmt: skip
    found = models()
    assert {source: row["verdict"] for source, row in found.items() if row["verdict"] != "error"} == dict.fromkeys(
        ("org/good", "org/good@main"), "pass"
    )
    assert found["org/good"]["commit"] == hub.repos["org/good"].commit
    assert found["org/good"]["location"] == "org/good"
    assert found["org/torch"]["error"] == (
        "org/torch is streamed as part of a list, and has weights that are no safetensors: "
        "name it as a SOURCE, which downloads it"
    )
    assert "org/gated is gated: accept the licence" in found["org/gated"]["error"]
    assert "there is neither a path 'org/missing' nor a public model" in found["org/missing"]["error"]
    assert "has no revision 'v9'" in found["org/good@v9"]["error"]
    assert {found[f"org/{each}"]["exit_code"] for each in ("torch", "gated", "private", "missing", "broken")} == {3}
    written = {path.name for path in tmp_path.iterdir()}
    assert written <= {"models.txt", "fleet.parquet", "cache"}
    assert "pytorch_model.bin" not in hub.downloads()


def test_a_model_is_audited_once_a_commit(hub, monkeypatch):
    hub.repos |= {"org/moved": repo(7), "org/same": repo(8), "org/pinned": repo(9)}
    pinned = f"org/pinned@{hub.repos['org/pinned'].commit}"
    hub.repos["org/pinned"].revisions = (hub.repos["org/pinned"].commit,)
    sources = ("org/moved", "org/same", pinned)
    run(*sources, code=0)
    hub.repos["org/moved"].files["README.md"] = b"new"
    audited, right = [], library.audit
    monkeypatch.setattr(library, "audit", lambda source, **more: audited.append(source) or right(source, **more))
    hub.requests.clear()
    run(*sources, code=0)
    assert audited == ["org/moved"]
    assert models()["org/moved"]["commit"] == hub.repos["org/moved"].commit
    asked = [path for _, path in hub.requests]
    assert len([path for path in asked if "org/same" in path]) == 1
    assert [path for path in asked if "org/pinned" in path] == []


def test_tensors_that_models_share_are_computed_once(hub, tmp_path):
    hub.repos |= {f"org/m{seed}": repo(seed) for seed in range(5, 9)}
    run(*hub.repos, code=0)
    assert len([path for path in entries(tmp_path / "cache") if path.suffix == ".result"]) == len(SHARED) + 2 * 4


def test_connections_are_bounded(hub, monkeypatch):
    is_open, most = set(), 0

    def setup(self):
        nonlocal most
        is_open.add(self)
        most = max(most, len(is_open))
        super(hub_stand_in._Handler, self).setup()

    def finish(self):
        super(hub_stand_in._Handler, self).finish()
        is_open.discard(self)  # or one of an earlier test, which its client dropped only now

    monkeypatch.setattr(hub_stand_in._Handler, "setup", setup, raising=False)
    monkeypatch.setattr(hub_stand_in._Handler, "finish", finish, raising=False)
    hub.repos |= {f"org/m{seed}": repo(seed) for seed in range(5, 11)}
    run(*hub.repos, code=0)
    assert 1 <= most <= 3


def test_a_hub_that_limits_its_answers_is_waited_for(hub, monkeypatch):
    hub.repos |= {"org/one": repo(7)}
    refused, right = [], hub_stand_in._Handler._api

    def limited(self, rest):
        if len(refused) < 2:
            refused.append(rest)
            self._error(429, None, "Too Many Requests", {"Retry-After": "0"})
        else:
            right(self, rest)

    monkeypatch.setattr(hub_stand_in._Handler, "_api", limited)
    run("org/one", code=0)
    assert refused == ["org/one", "org/one"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path):
    """Memory does not grow with 150 more models of a MiB each."""
    for i in range(200):
        (tmp_path / f"m{i}").mkdir()
        matrix = np.random.default_rng(i).standard_normal((512, 512)).astype("f4")
        save_file({name(0, "self_attn.q_proj"): matrix}, tmp_path / f"m{i}" / "model.safetensors")
    (tmp_path / "models.txt").write_text("\n".join(f"m{i}" for i in range(200)))
    options = ["--from", "models.txt", "--no-reference-model", "-f", "parquet", "-o", "fleet.parquet", "--jobs", "1"]
    held = {}
    with start(words("audit", *options), cwd=tmp_path, env={"SPECDIAG_CACHE": ""}) as process:
        for said in process.stderr:
            done = said.partition("/200")[0]
            if done in ("50", "199"):
                status = Path(f"/proc/{process.pid}/status")
                if not status.exists():
                    pytest.skip("no /proc here")
                held[done] = int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024
    assert process.returncode == 0
    assert len(rows(tmp_path / "fleet.parquet", "model")) == 200
    assert held["199"] - held["50"] < 40
