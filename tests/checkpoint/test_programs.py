"""Whole programs: TorchScript, torch.export and modules of torch.save. Their tensors are read, nothing of them runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from read_back import assert_stored

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Module):
    """Layers in a list, a layer under two names, a buffer, another one that is not saved, and two types."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(12, 8)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(2)])
        self.again = self.layers[0]
        self.narrow = torch.nn.Linear(8, 4, bias=False).bfloat16()
        self.register_buffer("mask", torch.ones(3, 3))
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.again(x)


def script(path: Path, net: Net) -> None:
    torch.jit.script(net).save(str(path))


def trace(path: Path, net: Net) -> None:
    torch.jit.trace(net, torch.zeros(2, dtype=torch.long)).save(str(path))


def export(path: Path, net: Net) -> None:
    torch.export.save(torch.export.export(net, (torch.zeros(2, dtype=torch.long),)), path)


def whole(path: Path, net: Net) -> None:
    torch.save(net, path)


def legacy(path: Path, net: Net) -> None:
    torch.save(net, path, _use_new_zipfile_serialization=False)


def beside(path: Path, net: Net) -> None:
    torch.save({"model": net, "epoch": 3}, path)


WRITERS = {"script": script, "trace": trace, "export": export, "whole": whole, "legacy": legacy, "beside": beside}


def expected(net: Net, kind: str) -> dict[str, torch.Tensor]:
    more = {"passing": net.passing} if kind in ("script", "trace") else {}  # TorchScript keeps all of them
    return {name: tensor.detach() for name, tensor in {**net.state_dict(), **more}.items()}


@pytest.mark.parametrize("kind", WRITERS)
def test_tensors_are_those_of_the_state_dict(tmp_path: Path, kind: str) -> None:
    net = Net()
    path = tmp_path / ("model.pt2" if kind == "export" else "model.pt")
    WRITERS[kind](path, net)
    for source in (path, tmp_path):
        checkpoint = open_checkpoint(source)
        found = {t.name for t in checkpoint.stored or ()}
        truth = expected(net, kind)
        assert_stored(checkpoint, {name: tensor for name, tensor in truth.items() if name in found})
        assert found >= set(net.state_dict())
        tied = {s.name: s.reason for s in checkpoint.skipped if s.reason.startswith("tied")}
        assert set(tied) == {"again.weight", "again.bias"}
        if kind != "beside":
            assert "nothing of it was run" in checkpoint.notes[0]


def test_code_that_a_module_would_run(tmp_path: Path) -> None:
    class Marked(Net):
        def __setstate__(self, state: dict[str, Any]) -> None:
            raise AssertionError("it was made")

    globals()["Marked"] = Marked
    Marked.__qualname__ = "Marked"
    torch.save(Marked(), tmp_path / "x.pt")
    assert "q" not in {m.module.role for m in open_checkpoint(tmp_path).matrices}
    assert "Marked" in open_checkpoint(tmp_path).notes[0]


def test_modules_that_share_modules(tmp_path: Path) -> None:
    """3^13 names of one matrix."""
    net: torch.nn.Module = torch.nn.Linear(2, 2)
    for _ in range(13):
        outer = torch.nn.Module()
        for i in range(3):
            outer.add_module(str(i), net)
        net = outer
    torch.save(net, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="under more than 100000 names"):
        open_checkpoint(tmp_path)


def test_a_module_that_holds_itself(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    net._modules["self"] = net
    torch.save(net, tmp_path / "x.pt")
    assert [m.name for m in open_checkpoint(tmp_path).matrices] == ["0.weight"]


def rewritten(path: Path, change: Any) -> None:
    """The archive with its table of weights changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (table,) = [name for name in members if name.endswith("_weights_config.json")]
    config = json.loads(members[table])
    change(config["config"])
    members[table] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def spoilt() -> Iterator[tuple[str, Any, str]]:
    def set_meta(key: str, value: Any) -> Any:
        return lambda config: config["embed.weight"]["tensor_meta"].__setitem__(key, value)

    yield "sizes", set_meta("sizes", [{"as_int": 1 << 40}, {"as_int": 8}]), "a tensor of .* values in 384 bytes"
    yield "negative", set_meta("sizes", [{"as_int": -1}, {"as_int": 8}]), "sizes that are no whole numbers"
    yield "symbol", set_meta("sizes", [{"as_expr": "s0"}, {"as_int": 8}]), "sizes that are no whole numbers"
    yield "offset", set_meta("storage_offset", {"as_int": 1 << 30}), "a tensor of .* values"
    yield "member", lambda config: config["embed.weight"].__setitem__("path_name", "../../x"), "is not a readable"
    yield "entry", lambda config: config.__setitem__("embed.weight", 3), "no object"


SPOILT = {name: (change, sentence) for name, change, sentence in spoilt()}


@pytest.mark.parametrize("case", SPOILT)
def test_exported_programs_that_lie(tmp_path: Path, case: str) -> None:
    change, sentence = SPOILT[case]
    export(tmp_path / "model.pt2", Net())
    rewritten(tmp_path / "model.pt2", change)
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


def test_types_that_are_not_read(tmp_path: Path) -> None:
    export(tmp_path / "model.pt2", Net())
    rewritten(tmp_path / "model.pt2", lambda config: config["embed.weight"]["tensor_meta"].__setitem__("dtype", 99))
    reasons = {s.name: s.reason for s in open_checkpoint(tmp_path).skipped}
    assert "99" in reasons["embed.weight"]


@pytest.mark.filterwarnings("ignore")
def test_frozen_programs_are_refused(tmp_path: Path) -> None:
    """Their weights are constants c0, c1, ... of the graph."""
    program = torch.jit.freeze(torch.jit.script(torch.nn.Linear(8, 8).eval()))
    torch.jit.save(program, tmp_path / "x.pt")
    with pytest.raises(SourceError, match=r"is a frozen TorchScript program: .*give the program from before"):
        open_checkpoint(tmp_path / "x.pt")


class Bare(torch.nn.Module):
    """Names that no rule knows, a floating-point buffer, and tensors that are neither."""

    def __init__(self) -> None:
        super().__init__()
        self.tok = torch.nn.Embedding(12, 8)
        self.rnn = torch.nn.LSTM(8, 8)
        self.register_buffer("values", torch.randn(9, 8))
        self.register_buffer("cache", torch.randn(9, 8), persistent=False)
        self.alibi = torch.ones(4)
        self.memories = [torch.ones(2, 2), torch.ones(2, 2)]


@pytest.mark.parametrize("kind", ["whole", "legacy", "beside"])
def test_modules_tell_parameters_from_the_rest(tmp_path: Path, kind: str) -> None:
    net = Bare()
    WRITERS[kind](tmp_path / "x.pt", net)  # pyright: ignore[reportArgumentType]
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert {m.name for m in checkpoint.matrices} == {"tok.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    assert {m.module.role for m in checkpoint.matrices if m.name == "tok.weight"} == {"embed"}
    assert {s.name: s.reason for s in checkpoint.skipped}["values"] == "buffer of its module"
    assert checkpoint.n_parameters == sum(parameter.numel() for parameter in net.parameters())
    left = "cache (a buffer that is not saved, 1 tensor), alibi (a plain attribute, 1 tensor), memories (a plain attr"
    assert left in checkpoint.notes[0]
    assert "_flat_weights" not in checkpoint.notes[0]
