"""Tensors of whole modules and programs that are in no state_dict are left out by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from read_back import assert_stored

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Module):
    """Tensors as attributes, in lists and in modules within lists; some are its parameters under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(8, 8)
        self.rnn = torch.nn.LSTM(8, 8)  # keeps its parameters in a list, too
        self.inner.scale = torch.ones(8)
        self.k = torch.randn(8, 8)
        self.hidden = [torch.nn.Linear(8, 8)]
        self.same = [self.inner, self.inner.weight]
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) @ self.k


LEFT = (
    "passing (a buffer that is not saved, 1 tensor), k (a plain attribute, 1 tensor), "
    "hidden (a plain attribute, 2 tensors), inner.scale (a plain attribute, 1 tensor)"
)


@pytest.mark.parametrize(
    ("wrap", "sentence"),
    [
        (lambda net: net, f"nothing of it was run. Left out {LEFT}."),
        (lambda net: {"model": net, "epoch": 3}, f"and left out epoch, {LEFT}."),
        (lambda net: {"run": {"model": net}}, "hidden (a plain attribute, 2 tensors)"),
    ],
)
def test_tensors_beside_the_state_dict(tmp_path: Path, wrap: Callable[[Net], object], sentence: str) -> None:
    net = Net()
    torch.save(wrap(net), tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert sentence in checkpoint.notes[0]
    stored = {tensor.name.removeprefix("model."): tensor.shape for tensor in checkpoint.stored or ()}
    assert stored == {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize("name", ["inner", "weight", "passing"])
def test_only_buffers_are_left_out_of_a_state_dict(tmp_path: Path, name: str) -> None:
    """torch itself asks the set of such names for buffers alone."""
    net = Net()
    for module in (net, net.inner):
        module._non_persistent_buffers_set.add(name)
    torch.save(net, tmp_path / "x.pt")
    assert_stored(open_checkpoint(tmp_path / "x.pt"), {n: t.detach() for n, t in net.state_dict().items()})


def test_attributes_that_hold_the_whole_module(tmp_path: Path) -> None:
    net: torch.nn.Module = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    for module in net:
        module.parent = [net, {"again": net}]
    torch.save(net, tmp_path / "x.pt")
    assert open_checkpoint(tmp_path / "x.pt").notes[0].endswith("nothing of it was run.")


def test_constants_of_a_trace(tmp_path: Path) -> None:
    net = Net()
    torch.jit.trace(net, torch.zeros(2, 8)).save(str(tmp_path / "x.pt"))
    assert "Left out 1 constant of its code, c0 of 8x8." in open_checkpoint(tmp_path / "x.pt").notes[0]
    torch.jit.script(torch.nn.Linear(8, 8)).save(str(tmp_path / "y.pt"))
    assert "Left out" not in open_checkpoint(tmp_path / "y.pt").notes[0]


def test_constants_of_an_exported_program(tmp_path: Path) -> None:
    class Exported(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :2] * self.passing

    torch.export.save(torch.export.export(Exported(), (torch.zeros(2, 8),)), tmp_path / "x.pt2")
    (note,) = [note for note in open_checkpoint(tmp_path / "x.pt2").notes if "exported program" in note]
    assert note.endswith("Left out its constants k, passing, which are not in its state_dict.")


def test_packed_weights_are_named(tmp_path: Path) -> None:
    net = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(8, 8)), dtype=torch.qint8)
    torch.jit.script(net).save(str(tmp_path / "x.pt"))
    with pytest.raises(SourceError, match=r"only 0\._packed_params\._packed_params \(an object of .* with 2 tensors\)"):
        open_checkpoint(tmp_path / "x.pt")
