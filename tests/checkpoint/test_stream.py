"""`--stream`: hub repositories by ranges, against a loopback hub that drops, stalls, lies and redirects."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import call, start
from hub_stand_in import HubStandIn, Repo
from huggingface_hub import constants
from quantisers import FORMATS
from safetensors.numpy import save
from safetensors.torch import save as torch_bytes

import specdiag
from specdiag.checkpoint import ranges
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.safetensors_header import FIRST_READ
from specdiag.errors import SourceError, UsageError

RNG = np.random.default_rng(0)
QUERY, KEY, NORM = (f"model.layers.0.{name}.weight" for name in ("self_attn.q_proj", "self_attn.k_proj", "norm"))
TENSORS = {QUERY: RNG.standard_normal((300, 400), np.float32), KEY: RNG.standard_normal((64, 96), np.float32)}
WEIGHTS = save(TENSORS | {NORM: np.ones(64, np.float32)})
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 400}).encode()
ONE = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "pytorch_model.bin": b"x" * 10}
SHARDED = {
    "config.json": CONFIG,
    "model.safetensors.index.json": json.dumps(
        {
            "metadata": {},
            "weight_map": {QUERY: "model-00001-of-00002.safetensors", KEY: "model-00002-of-00002.safetensors"},
        }
    ).encode(),
    "model-00001-of-00002.safetensors": save({QUERY: TENSORS[QUERY]}),
    "model-00002-of-00002.safetensors": save({KEY: TENSORS[KEY]}, metadata={"long": "x" * 2 * FIRST_READ}),
}
PIPELINE = {
    "model_index.json": json.dumps({"_class_name": "Some", "unet": ["diffusers", "UNet2DConditionModel"]}).encode(),
    "unet/config.json": CONFIG,
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
}
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
ADAPTER = {
    "adapter_config.json": json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}).encode(),
    "adapter_model.safetensors": save(
        {LORA.format("A"): np.ones((2, 400), np.float32), LORA.format("B"): np.ones((300, 2), np.float32)}
    ),
}
QUANTISED = {
    f"org/{name}": {
        "config.json": json.dumps(form.config).encode(),
        "model.safetensors": torch_bytes(
            form.quantise(QUERY.removesuffix(".weight"), TENSORS[QUERY][:256, :256]).tensors
        ),
    }
    for name, form in FORMATS.items()
    if name in ("fp8-block", "gptq4", "nf4")
}
REPOS = {
    "org/one": ONE,
    "org/sharded": SHARDED,
    "org/pipeline": PIPELINE,
    "org/adapter": ADAPTER,
    "legacy": ONE,
    **QUANTISED,
}
DATA_START = 8 + int.from_bytes(WEIGHTS[:8], "little")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The hub of this process, which does not wait long between attempts."""
    with HubStandIn({name: Repo(dict(files)) for name, files in REPOS.items()}) as stand_in:
        stand_in.replace_the_real_one(monkeypatch)
        monkeypatch.setattr(ranges, "FIRST_PAUSE", 0.001)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield stand_in


Answer = Callable[[bytes, BaseHTTPRequestHandler], bool]


def asked(handler: BaseHTTPRequestHandler) -> tuple[int, int]:
    """The first byte and the one after the last of a range request."""
    first, last = handler.headers["Range"].removeprefix("bytes=").split("-")
    return int(first), int(last) + 1


def give(
    handler: BaseHTTPRequestHandler,
    body: bytes,
    *,
    status: int = 206,
    given: str | None = None,
    length: int | None = None,
    **headers: str,
) -> bool:
    """An answer of our own making."""
    handler.send_response(status)
    if given is not None:
        handler.send_header("Content-Range", given)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True
    return True


def on_tensor(answer: Answer) -> Answer:
    """Only where a tensor is asked for: headers and config.json come as they should."""
    return lambda data, handler: len(data) == len(WEIGHTS) and asked(handler)[0] >= DATA_START and answer(data, handler)


def read(location: str = "org/one", name: str = QUERY) -> np.ndarray[Any, Any]:
    (matrix,) = (m for m in open_checkpoint(location, stream=True).matrices if m.name == name)
    return matrix.tensor.read(None)


@pytest.mark.parametrize("location", REPOS)
def test_same_as_what_is_on_disk(hub: HubStandIn, tmp_path: Path, location: str) -> None:
    for name, data in REPOS[location].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    streamed, local = specdiag.analyze(location, stream=True), specdiag.analyze(tmp_path)
    assert streamed.records == local.records
    assert streamed.skipped == local.skipped
    assert streamed.provenance.notes == local.provenance.notes
    assert streamed.provenance.architecture == local.provenance.architecture
    assert (streamed.source.files, streamed.source.ignored) == (local.source.files, local.source.ignored)
    assert (streamed.source.kind, streamed.source.location) == ("hub", location)
    assert streamed.source.commit == hub.repos[location].commit
    for record in local:
        assert np.array_equal(streamed.eigenvalues(record.key), local.eigenvalues(record.key))


def test_an_adapter_on_its_base(hub: HubStandIn, tmp_path: Path) -> None:
    """Either may lie on this machine."""
    for name, data in ADAPTER.items():
        (tmp_path / name).write_bytes(data)
    for adapter in ("org/adapter", tmp_path):
        (matrix,) = (m for m in open_checkpoint(adapter, base="org/one", stream=True).matrices if m.name == QUERY)
        assert np.allclose(matrix.tensor.read(None), TENSORS[QUERY] + 4, atol=1e-6)


def test_one_request_for_each_tensor(hub: HubStandIn) -> None:
    """And one for each small file and each header; slices of a stack come alone."""
    seen: list[tuple[int, int]] = []

    def note(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        seen.append(asked(handler))
        return False

    hub.repos["org/one"].answer = note
    checkpoint = open_checkpoint("org/one", stream=True)
    assert sorted(seen) == [(0, len(CONFIG)), (0, min(len(WEIGHTS), FIRST_READ))]
    seen.clear()
    (query,) = (m for m in checkpoint.matrices if m.name == QUERY)
    query.tensor.read(None)
    query.tensor.read(7)
    (whole, slice_) = seen
    assert whole[1] - whole[0] == TENSORS[QUERY].nbytes
    assert slice_ == (whole[0] + 7 * 1600, whole[0] + 8 * 1600)
    assert set(hub.downloads()) == {"config.json", "model.safetensors"}


def test_a_connection_that_drops_goes_on_where_it_was(hub: HubStandIn) -> None:
    seen: list[int] = []

    def drop(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        begin, end = asked(handler)
        seen.append(begin)
        sent = 100_000 if len(seen) < 4 else end - begin
        return give(
            handler, data[begin : begin + sent], given=f"bytes {begin}-{end - 1}/{len(data)}", length=end - begin
        )

    hub.repos["org/one"].answer = on_tensor(drop)
    assert np.array_equal(read(), TENSORS[QUERY])
    assert np.diff(seen).tolist() == [100_000] * 3


def test_a_connection_that_never_gets_further(hub: HubStandIn) -> None:
    repo = hub.repos["org/one"]
    checkpoint = open_checkpoint("org/one", stream=True)
    begin = next(i for i in range(len(WEIGHTS)) if WEIGHTS[i : i + 64] == TENSORS[QUERY].tobytes()[:64])
    repo.cut_after = begin + 1000
    hub.requests.clear()
    with pytest.raises(SourceError) as caught:
        next(m for m in checkpoint.matrices if m.name == QUERY).tensor.read(None)
    left = TENSORS[QUERY].nbytes - 1000
    assert f"'org/one/model.safetensors' could not be read beyond byte {begin + 1000} of {len(WEIGHTS)}" in str(
        caught.value
    )
    assert f"where {left} more were asked for" in str(caught.value)
    assert len(hub.requests) == ranges.ATTEMPTS + 1

    hub.requests.clear()
    repo.cut_after = 0
    with pytest.raises(SourceError, match=f"beyond byte {begin} "):  # at once: one tensor waited long enough for all
        next(m for m in checkpoint.matrices if m.name == QUERY).tensor.read(None)
    assert len(hub.requests) == 1
    repo.cut_after = None
    assert np.array_equal(next(m for m in checkpoint.matrices if m.name == QUERY).tensor.read(None), TENSORS[QUERY])
    hub.requests.clear()  # and that is forgotten once bytes come
    repo.cut_after = 0
    with pytest.raises(SourceError):
        next(m for m in checkpoint.matrices if m.name == QUERY).tensor.read(None)
    assert len(hub.requests) == ranges.ATTEMPTS


def test_one_lost_tensor_is_one_row_without_numbers(hub: HubStandIn) -> None:
    begin = WEIGHTS.index(TENSORS[KEY].tobytes()[:64])
    hub.repos["org/one"].answer = on_tensor(
        lambda data, handler: (
            asked(handler)[0] == begin and give(handler, b"", status=404, X_Error_Code="EntryNotFound")
        )
    )
    report = specdiag.analyze("org/one", stream=True)
    assert {r.name: r.status for r in report} == {QUERY: "ok", KEY: "failed"}


@pytest.mark.parametrize("stalled", [False, True])
def test_slow_answers(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, stalled: bool) -> None:
    """A connection that trickles is waited for; one that stalls is opened again."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    n_requests = 0

    def trickle(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        nonlocal n_requests
        n_requests += 1
        begin, end = asked(handler)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        handler.send_header("Content-Length", str(end - begin))
        handler.end_headers()
        for at in range(begin, end, 60_000):
            handler.wfile.write(data[at : min(at + 60_000, end)])
            time.sleep(0.7 if stalled and n_requests == 1 else 0.06)
        return True

    hub.repos["org/one"].answer = on_tensor(trickle)
    assert np.array_equal(read(), TENSORS[QUERY])
    assert n_requests == (2 if stalled else 1)


LIES: dict[str, tuple[Callable[[bytes, int, int], dict[str, Any]], str]] = {
    "all of the file": (
        lambda d, a, b: {"body": d, "status": 200},
        "does not give parts of 'org/one/model.safetensors'",
    ),
    "compressed": (
        lambda d, a, b: {"body": d[a:b], "given": f"bytes {a}-{b - 1}/{len(d)}", "Content_Encoding": "gzip"},
        "does not give parts of",
    ),
    "another size": (lambda d, a, b: {"body": d[a:b], "given": f"bytes {a}-{b - 1}/{len(d) + 1}"}, "is listed with"),
    "another range": (lambda d, a, b: {"body": d[: b - a], "given": f"bytes 0-{b - a - 1}/{len(d)}"}, "is listed with"),
    "no range": (lambda d, a, b: {"body": d[a:b]}, "answers '206' for the bytes from"),
    "unknown size": (lambda d, a, b: {"body": d[a:b], "given": f"bytes {a}-{b - 1}/*"}, "is listed with"),
    "too many bytes": (lambda d, a, b: {"body": d[a:] * 2, "given": f"bytes {a}-{b - 1}/{len(d)}"}, "more than the"),
    "nothing there": (lambda d, a, b: {"body": b"", "status": 416, "given": f"bytes */{a}"}, "is listed with"),
}


@pytest.mark.parametrize("case", LIES)
def test_answers_that_are_not_what_was_asked_for(hub: HubStandIn, case: str) -> None:
    make, sentence = LIES[case]
    hub.repos["org/one"].answer = on_tensor(lambda data, handler: give(handler, **make(data, *asked(handler))))
    with pytest.raises(SourceError, match=sentence) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_a_file_that_is_asked_for_whole_may_come_whole(hub: HubStandIn) -> None:
    hub.repos["org/one"].answer = lambda data, handler: data == CONFIG and give(handler, data, status=200)
    assert open_checkpoint("org/one", stream=True).architecture == "LlamaForCausalLM"


def test_a_busy_hub_is_given_the_time_that_it_asks_for(hub: HubStandIn) -> None:
    times: list[float] = []

    def busy(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        times.append(time.monotonic())
        return len(times) == 1 and give(handler, b"", status=429, Retry_After="1")

    hub.repos["org/one"].answer = on_tensor(busy)
    assert np.array_equal(read(), TENSORS[QUERY])
    assert times[1] - times[0] >= 1


def test_a_hub_that_stays_busy(hub: HubStandIn) -> None:
    hub.repos["org/one"].answer = on_tensor(lambda data, handler: give(handler, b"", status=503))
    with pytest.raises(SourceError, match=r"answered 503 for org/one: try again later"):
        read()
    assert len(hub.downloads()) == 2 + ranges.ATTEMPTS + 1


@pytest.fixture
def storage() -> Iterator[ThreadingHTTPServer]:
    """Another host that has the bytes, as the hub's storage: `expired` answers are refused first."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
            if len(server.seen) == 1:  # type: ignore[attr-defined]
                give(self, b"", status=403)
                return
            begin, end = asked(self)
            give(self, WEIGHTS[begin:end], given=f"bytes {begin}-{end - 1}/{len(WEIGHTS)}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_redirect_to_storage(hub: HubStandIn, storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that has expired is asked for again, and the token stays with the hub."""
    monkeypatch.setenv("HF_TOKEN", hub.granted)
    repo, tokens = hub.repos["org/one"], list[str | None]()
    repo.private = True

    def redirect(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        tokens.append(handler.headers.get("Authorization"))
        return give(handler, b"", status=302, Location=f"http://127.0.0.1:{storage.server_port}/signed")

    repo.answer = on_tensor(redirect)
    assert np.array_equal(read(), TENSORS[QUERY])
    assert tokens == [f"Bearer {hub.granted}"] * 2
    assert len(storage.seen) == 2
    assert all("Authorization" not in headers for headers in storage.seen)


def test_tokens_and_refusals(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/one"].gated, hub.repos["org/sharded"].private = True, True
    for location, sentence in (
        ("org/one", "org/one is gated: accept the licence"),
        ("org/sharded", "for a private model set HF_TOKEN"),
        ("org/nowhere", "neither a path 'org/nowhere' nor a public model"),
        ("legacy@v9", "legacy has no revision 'v9'"),
    ):
        with pytest.raises(SourceError, match=sentence):
            open_checkpoint(location, stream=True)
    monkeypatch.setenv("HF_TOKEN", hub.granted)
    assert np.array_equal(read("org/one"), TENSORS[QUERY])
    assert np.array_equal(read("org/sharded"), TENSORS[QUERY])


def test_offline_and_unreachable(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(SourceError, match=r"stream=True reads org/one from the hub and HF_HUB_OFFLINE is set"):
            read()
    assert hub.requests == []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        SourceError, match=r"no path .org/one., and http://127.0.0.1:9 cannot be reached to list org/one .*spelling"
    ):
        read()


def test_a_configuration_that_cannot_be_fetched_is_not_left_out(hub: HubStandIn) -> None:
    """Roles depend on it: only a damaged one is gone on without."""
    hub.repos["org/one"].answer = lambda data, handler: data == CONFIG and give(handler, b"", status=500)
    with pytest.raises(SourceError, match="answered 500"):
        open_checkpoint("org/one", stream=True)


def test_what_is_not_streamed(hub: HubStandIn, tmp_path: Path) -> None:
    hub.repos |= {
        "org/bin": Repo({"pytorch_model.bin": b"x" * 600}),
        "org/gguf": Repo({"model.safetensors": b"GGUF" + b"\0" * 600}),
        "org/page": Repo({"model.safetensors": b"<html>" * 100}),
        "org/empty": Repo({"model.safetensors": b""}),
        "org/cut": Repo({"model.safetensors": WEIGHTS[:-1]}),
        "org/onnx": Repo({"model.onnx": b"ONNX"}),
    }
    for location, kind, sentence in (
        ("org/bin", UsageError, "'org/bin/pytorch_model.bin' is none: leave out stream=True to download it"),
        ("org/gguf", UsageError, "'org/gguf/model.safetensors' is none"),
        ("org/page", SourceError, "is a web page"),
        ("org/empty", SourceError, "is empty: fetch it again"),
        ("org/cut", SourceError, "is not a readable safetensors file"),
        ("org/onnx", SourceError, "holds weights only as model.onnx"),
        (str(tmp_path), UsageError, "stream=True is for models on the hub"),
    ):
        with pytest.raises(kind, match=sentence):
            open_checkpoint(location, stream=True)
    assert not {"pytorch_model.bin", "model.onnx"} & set(hub.downloads())
    with pytest.raises(UsageError, match="open or in memory already"):
        specdiag.analyze(open_checkpoint("org/one", stream=True), stream=True)


class Command:
    """`specdiag` in a process of its own, with an empty HF_HOME."""

    def __init__(self, hub: HubStandIn, folder: Path) -> None:
        self.folder = folder
        self.environment = hub.environment(folder / "home") | {"TMPDIR": str(folder / "tmp")}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return start([sys.executable, *arguments], env=self.environment, cwd=self.folder)

    def run(self, *arguments: str) -> str:
        done = call([sys.executable, *arguments], env=self.environment, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*"))


@pytest.fixture
def command(hub: HubStandIn, tmp_path: Path) -> Command:
    return Command(hub, tmp_path)


def test_the_command_writes_nothing_but_its_report(hub: HubStandIn, command: Command) -> None:
    listed = command.run("-m", "specdiag", "analyze", "org/sharded", "--stream", "--dry-run", "-f", "json")
    assert {row["name"] for row in json.loads(listed)} == {QUERY, KEY}
    assert len(hub.downloads()) == 5  # the second shard's header is long
    streamed = json.loads(command.run("-m", "specdiag", "analyze", "org/sharded", "--stream", "-f", "json"))
    assert command.files() == []
    downloaded = json.loads(command.run("-m", "specdiag", "analyze", "org/sharded", "-f", "json"))
    assert command.files() != []
    assert all(part.pop("provenance")["notes"] == [] for part in (streamed, downloaded))
    assert streamed == downloaded


def test_the_revisions_of_a_trajectory(hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished report is recognised by its commit."""
    hub.repos["org/one"].revisions = ("step1", "step2")
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    for resumed in (False, True):
        hub.requests.clear()
        found = specdiag.trajectory("org/one", revisions=["step1", "step2"], stream=True, out=tmp_path / "out")
        assert [(step.step, step.resumed) for step in found.steps] == [(1, resumed), (2, resumed)]
        assert (hub.downloads() == []) == resumed
    assert not cache.exists()
    with pytest.raises(UsageError, match="comes without revisions="):
        specdiag.trajectory(tmp_path, stream=True)


def test_memory_stays_at_the_largest_tensor(hub: HubStandIn, command: Command) -> None:
    """20 tensors of 15 MiB: reading them one after the other grows the resident set by one of them, not by 300 MiB."""
    tensor = RNG.standard_normal((1920, 2048), np.float32)
    names = [f"layers.{i}.self_attn.q_proj.weight" for i in range(20)]
    hub.repos["org/large"] = Repo({"model.safetensors": save(dict.fromkeys(names, tensor))})
    code = (
        "from specdiag.checkpoint.reader import open_checkpoint; from specdiag.resources import peak_memory\n"
        "checkpoint = open_checkpoint('org/large', stream=True); before = peak_memory()\n"
        "sums = {float(matrix.tensor.read(None)[::7].sum()) for matrix in checkpoint.matrices}\n"
        "print(len(checkpoint.matrices), *sums, peak_memory() - before)"
    )
    n_matrices, total, grown = command.run("-c", code).split()
    assert (n_matrices, float(total)) == ("20", float(tensor[::7].sum()))
    assert int(grown) < 2 * tensor.nbytes


def test_ctrl_c_while_the_hub_stalls(hub: HubStandIn, command: Command) -> None:
    """At once, with what is finished."""
    stalls, begin = threading.Event(), WEIGHTS.index(TENSORS[KEY].tobytes()[:64])

    def stall(data: bytes, handler: BaseHTTPRequestHandler) -> bool:
        if asked(handler)[0] != begin:
            return False
        stalls.set()
        time.sleep(8)
        return True

    hub.repos["org/one"].answer = on_tensor(stall)
    process = command.start("-m", "specdiag", "-v", "analyze", "org/one", "--stream", "--jobs", "1", "-o", "a.json")
    assert process.stderr is not None
    assert any(QUERY in line for line in process.stderr if "DEBUG" in line)
    assert stalls.wait(30)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    assert process.returncode == 130
    report = specdiag.load_report(command.folder / "a.json")
    assert (report.complete, [record.name for record in report]) == (False, [QUERY])
