"""Torch files that change while they are read, that show few bytes often, or that hold too much to be a checkpoint."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command import python

from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import ComputationError, SourceError

QUERY = "layers.0.self_attn.q_proj.weight"
ZIPPED = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def handmade(folder: Path, pickled: bytes) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
    return path


def test_file_that_is_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({QUERY: torch.ones(512, 512)}, path)
    code = """
import os, sys
from specdiag.checkpoint.reader import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
os.truncate(sys.argv[1], 4096)
try:
    checkpoint.matrices[0].load()
except Exception as error:
    print(type(error).__name__, error)
"""
    done = python(code, path)
    assert done.stdout.startswith("SourceError")
    assert "cut short or replaced meanwhile" in done.stdout


@ZIPPED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_of_views_are_those_of_torch(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    whole = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)).to(dtype)
    views = {
        "plain.weight": whole,
        "rows.weight": whole[7:31],
        "columns.weight": whole[:, 3:50:2],
        "turned.weight": whole[2:30].T,
        "negative.weight": torch._neg_view(whole[:20]),  # pyright: ignore
        "stack.weight": whole.reshape(4, 10, 60).transpose(1, 2)[1:],
    }
    torch.save(views, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    stored = {tensor.name: tensor for tensor in open_checkpoint(tmp_path).stored or ()}
    assert list(stored) == list(views)
    for name, view in views.items():
        expected = view.resolve_neg().contiguous()
        bits = expected.view(torch.uint16) if dtype == torch.bfloat16 else expected
        np.testing.assert_array_equal(stored[name].read(None), bits.numpy())
        np.testing.assert_array_equal(stored[name].read(1), bits[1].numpy())


@pytest.mark.parametrize(
    ("rows", "columns"), [(6000, 6000), (1500, 1500)], ids=["much more than the least", "just more than the least"]
)
def test_view_that_repeats_one_value(tmp_path: Path, rows: int, columns: int) -> None:
    torch.save({QUERY: torch.ones(1).expand(rows, columns)}, tmp_path / "model.pt")
    (skipped,) = open_checkpoint(tmp_path).skipped
    assert skipped.reason == f"a view that repeats 4 stored bytes to {rows * columns * 4}"


def test_many_views_of_the_same_bytes(tmp_path: Path) -> None:
    whole = torch.randn(256 * 256 + 200)
    views = {f"layers.{n}.q_proj.weight": whole[n : n + 65536].view(256, 256) for n in range(200)}
    torch.save(views, tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.matrices) + len(checkpoint.skipped) == 200
    assert 30 < len(checkpoint.matrices) < 40
    assert "stored bytes to 262144 beside other views of them" in checkpoint.skipped[0].reason


def test_twins_over_large_memory_are_read() -> None:
    whole = torch.zeros(1600, 1600)
    checkpoint = from_state_dict({"a.weight": whole, "b.weight": whole.T})
    assert [matrix.name for matrix in checkpoint.matrices] == ["a.weight", "b.weight"]


@pytest.mark.parametrize(
    ("pickled", "sentence"),
    [
        (b"\x80\x02](" + b"}" * 1_000_001 + b"e.", "holds more than 1000000 lists, dictionaries and objects"),
        (b"\x80\x02](" + b"(l" * 1_000_001 + b"e.", "holds more than 1000000 lists, dictionaries and objects"),
        (b"\x80\x02](cfoo\nbar\nq\x00" + b"h\x00)R" * 1_000_001 + b"e.", "holds more than 1000000 lists"),
        (b"\x80\x02" + b"(" * 100_001 + b".", "holds containers nested more than 100000 deep"),
        (b"\x80\x02}X\x01\x00\x00\x00k](" + b"N\x85" * 1_000_001 + b"es.", "holds more than 1000000 lists and"),
    ],
    ids=["dictionaries", "lists", "objects", "marks", "tuples"],
)
def test_too_much_for_a_checkpoint(tmp_path: Path, pickled: bytes, sentence: str) -> None:
    with pytest.raises(SourceError, match=rf"{sentence}.*: save the state_dict alone"):
        open_checkpoint(handmade(tmp_path, pickled))


def test_history_of_many_numbers_lies_beside_weights(tmp_path: Path) -> None:
    content = {"model": {QUERY: torch.ones(8, 8)}, "losses": [0.5] * 300_000, "steps": {n: n for n in range(100_000)}}
    torch.save(content, tmp_path / "model.pt")
    assert [matrix.name for matrix in open_checkpoint(tmp_path).matrices] == [QUERY]


def test_only_an_optimizer_within_a_file_is_no_weights(tmp_path: Path) -> None:
    torch.save({"state": {0: {"exp_avg": torch.ones(4, 4)}}}, tmp_path / "model.pt")
    with pytest.raises(SourceError, match="holds no weights; its keys are state"):
        open_checkpoint(tmp_path)


def test_average_of_torch_keeps_its_counter() -> None:
    state = {"module.a.weight": torch.ones(4, 4), "n_averaged": torch.tensor(3)}
    names = [tensor.name for tensor in from_state_dict(state).stored or ()]
    assert names == ["a.weight", "n_averaged"]


def test_name_that_a_part_of_another_tensor_is_given() -> None:
    fused = {"layers.0.attn.qkv.weight": torch.ones(24, 8), "layers.0.attn.qkv.weight[q]": torch.ones(8, 8)}
    with pytest.raises(SourceError, match=r"the name 'layers.0.attn.qkv.weight\[q\]', which a part of another"):
        from_state_dict(fused)


def test_note_on_updates_beside_the_weights_that_they_change() -> None:
    down, up = torch.ones(2, 8), torch.ones(8, 2)
    layer = "layers.0.self_attn.q_proj"
    held = {QUERY: torch.ones(8, 8), f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    notes = from_state_dict(held).notes
    assert notes[0] == "1 of the rows are updates s B A of weights that lie in the same file."
    alone = from_state_dict({name: tensor for name, tensor in held.items() if name != QUERY}).notes
    assert alone[0].startswith("The rows are an adapter's updates")


def test_file_that_memory_has_no_room_to_map_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.zeros(64, 64).T}, tmp_path / "model.pt")

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("unable to mmap 58738997 bytes from file </model.pt>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", full)
    with pytest.raises(ComputationError, match="Cannot allocate memory"):
        open_checkpoint(tmp_path / "model.pt")
