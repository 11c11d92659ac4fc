"""A hub, or what answers in its place, that lists and answers what no hub does: one sentence, soon."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import fuzzing
import hub_stand_in
import numpy as np
import pytest
from hub_stand_in import HubStandIn, Repo
from huggingface_hub import constants
from safetensors.numpy import save

from specdiag.checkpoint import ranges
from specdiag.checkpoint.hub import _leads_on, checked_names
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

QUERY = "model.layers.0.self_attn.q_proj.weight"
FILES = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode(),
    "model.safetensors": save({QUERY: np.random.default_rng(0).standard_normal((8, 8), np.float32)}),
}
HONEST = hub_stand_in._entries


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A hub whose cache is this test's own. Nobody waits longer than a hub's rate limit lasts, nor really."""

    def sleep(seconds: float) -> None:
        assert seconds <= 302, f"a wait of {seconds} s"

    with HubStandIn({"org/m": Repo(dict(FILES))}) as stand_in:
        stand_in.replace_the_real_one(monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(ranges, "FIRST_PAUSE", 0.001)
        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield stand_in


def lists(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Let the hub list something else: what `change` returns, or its argument where that is None."""

    def entries(repo: Repo) -> object:
        honest: list[dict[str, Any]] = HONEST(repo)
        changed = change(honest)
        return honest if changed is None else changed

    monkeypatch.setattr(hub_stand_in, "_entries", entries)


def sized(name: str, size: object) -> Callable[[list[dict[str, Any]]], None]:
    return lambda entries: next(e for e in entries if e["path"] == name).update(size=size)


@pytest.mark.parametrize("size", [None, "x", "9" * 5000, -1, 1e300, 1.5, True, [], {}, 2**63, 10**4000])
@pytest.mark.parametrize("name", FILES)
def test_sizes_that_no_file_has(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, name: str, size: object) -> None:
    lists(monkeypatch, sized(name, size))
    with pytest.raises(SourceError, match=rf"lists 'org/m/{name}' with a size of .*which no file has") as caught:
        open_checkpoint("org/m", stream=True)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("size", "sentence"), [(2**40, "at most 67108864 are read"), (3, "is listed with 3 bytes")])
def test_sizes_of_a_small_file(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, size: int, sentence: str) -> None:
    lists(monkeypatch, sized("config.json", size))
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint("org/m", stream=True)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../../b", "x\0y", "y" * 5000, None, 7, ["a"]])
@pytest.mark.parametrize("stream", [True, False])
def test_names_outside_the_repository(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, name: object, stream: bool
) -> None:
    lists(monkeypatch, lambda entries: entries.append({"type": "file", "path": name, "size": 1, "oid": "0"}))
    with pytest.raises(SourceError) as caught:
        open_checkpoint("org/m", stream=stream)
    assert len(str(caught.value)) < 400
    if stream:
        assert "lists a file of org/m outside of it, or under no possible name" in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "", "..", "a/..", "\0", "a" * 256, "ä" * 200, "a/" * 600, None, b"a"])
def test_names_that_no_file_of_a_repository_has(name: object) -> None:
    with pytest.raises(SourceError, match="outside of it, or under no possible name"):
        checked_names(["config.json", name], "org/m")
    assert checked_names(["a/b c.json", "..a", "ä" * 100], "org/m") == ("a/b c.json", "..a", "ä" * 100)


@pytest.mark.parametrize(
    "listing", [[7], [{}], {"error": 1}, [{"type": "file"}], "x", None, [{"type": "file", "path": "a"}]]
)
@pytest.mark.parametrize("stream", [True, False])
def test_listings_that_are_none(
    hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, listing: object, stream: bool
) -> None:
    lists(monkeypatch, lambda _: listing if listing is not None else 0)
    with pytest.raises(SourceError):
        open_checkpoint("org/m", stream=stream)


def test_any_listing(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = HONEST(hub.repos["org/m"])
    listed: list[object] = []
    lists(monkeypatch, lambda _: listed[0])

    def read(listing: object) -> None:
        listed[:] = [listing]
        open_checkpoint("org/m", stream=True)

    # as JSON writes it: a lone surrogate cannot be sent otherwise
    assert fuzzing.fuzz(read, fuzzing.json_mutations(honest, 0)) >= 20


Answer = Callable[[bytes, BaseHTTPRequestHandler], bool]


def answer(hub: HubStandIn, status: int, **headers: str) -> list[str]:
    """Let the hub answer so where weights are asked for; what is asked is returned."""
    asked: list[str] = []

    def give(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        if data != FILES["model.safetensors"]:
            return False
        asked.append(handler.path)
        handler.send_response(status)
        for name, value in {"Content_Length": "0", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        return True

    hub.repos["org/m"].answer = give
    return asked


@pytest.mark.parametrize("digits", [20, 5000])
def test_ranges_of_many_digits(hub: HubStandIn, digits: int) -> None:
    answer(hub, 206, Content_Range=f"bytes {'9' * digits}-1/{'9' * digits}")
    with pytest.raises(SourceError, match=r"is listed with \d+ bytes, and .* answers 'bytes 9999") as caught:
        open_checkpoint("org/m", stream=True)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry_After": "1000000000"},
        {"Retry_After": "9" * 5000},
        {"Retry_After": "301"},
        {"ratelimit": '"api";r=0;t=1000000000'},
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_wait_of_years_is_not_waited(hub: HubStandIn, headers: dict[str, str], stream: bool) -> None:
    asked = answer(hub, 429, **headers)
    with pytest.raises(SourceError, match=r"answered 429 for org/m and asks to wait \d+.*at most 300 s are waited"):
        open_checkpoint("org/m", stream=stream)
    assert len(asked) == 1


def test_a_wait_of_minutes_is_waited(hub: HubStandIn) -> None:
    asked = answer(hub, 429, Retry_After="300")
    with pytest.raises(SourceError, match="answered 429 for org/m: wait a minute"):
        open_checkpoint("org/m", stream=True)
    assert len(asked) == ranges.ATTEMPTS + 1


@pytest.mark.parametrize(
    "location",
    ["file:///etc/hostname", "data:,x", "ftp://127.0.0.1/x", "http://[x", "http://a:99999/"],
)
@pytest.mark.parametrize("stream", [True, False])
def test_redirects_to_nowhere_are_not_tried_again(hub: HubStandIn, location: str, stream: bool) -> None:
    asked = answer(hub, 302, Location=location)
    with pytest.raises(SourceError, match=r"sends org/m on to '.*', where no file can be fetched"):
        open_checkpoint("org/m", stream=stream)
    assert len(asked) == 1


def test_redirects_in_a_circle_are_followed_once(hub: HubStandIn) -> None:
    asked = answer(hub, 302, Location=f"{hub.url}/org/m/resolve/main/model.safetensors")
    with pytest.raises(SourceError, match=r"cannot be read: .*redirects"):
        open_checkpoint("org/m", stream=True)
    assert len(asked) < 50


def test_from_https_nobody_is_sent_to_http() -> None:
    follows = {
        (here, there): _leads_on(f"{here}://hub/a", f"{there}://cdn/b")
        for here, there in itertools.product(("http", "https"), repeat=2)
    }
    assert follows == {
        ("http", "http"): True,
        ("http", "https"): True,
        ("https", "https"): True,
        ("https", "http"): False,
    }
    assert _leads_on("https://hub/a", "/api/resolve-cache/b")
