"""Checkpoints of torch.distributed.checkpoint, written by torch itself and compared tensor by tensor."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_files import assert_holds, change_metadata, save_chunks, save_one
from safetensors.torch import load_file
from several_ranks import side_by_side
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint.filesystem import SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from specdiag import analyze
from specdiag.checkpoint import plain_values
from specdiag.checkpoint.distributed.checkpoint import list_distributed
from specdiag.checkpoint.distributed.cover import uncovered
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

SAVES = Path(__file__).parents[1] / "distributed_saves.py"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(37, 53), nn.Linear(53, 21, bias=False), nn.LayerNorm(21))


def trained(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 37)).square().sum().backward()
    optimizer.step()
    return optimizer


@pytest.fixture(scope="module")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four processes: FSDP2 within tensor parallelism, with an optimizer, by torch, accelerate and Lightning's Fabric.

    Slices are by torch's Hugging Face writer.
    """
    folder = tmp_path_factory.mktemp("saves")
    for done in side_by_side(SAVES, folder, n=4):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["dcp", "checkpoint-1", "fabric.ckpt", "slices"])
def test_what_four_processes_saved(saves: Path, name: str) -> None:
    checkpoint = open_checkpoint(saves / name)
    assert_holds(checkpoint, load_file(saves / ("slices.safetensors" if name == "slices" else "dcp.safetensors")))
    left = f"Left out 21 tensors of an optimizer's state in {saves / name}."
    assert (left in checkpoint.notes) == (name in ("dcp", "fabric.ckpt"))
    assert len(checkpoint.source.files) == (4 if name == "slices" else 5)


def test_exponents_are_those_of_the_whole_matrices(saves: Path) -> None:
    ours, theirs = (analyze(saves / name) for name in ("dcp", "dcp.safetensors"))
    numbers = [{r.name: (r.alpha, r.spectral_norm) for r in report.records} for report in (ours, theirs)]
    assert numbers[0] == numbers[1] != {}


@pytest.mark.parametrize("name", ["dcp", "slices"])
def test_the_file_of_one_process_is_refused(saves: Path, name: str) -> None:
    part = sorted((saves / name).glob("*[13]*.*"))[0]
    for source, file in ((part, None), (saves / name, part.name), (saves, f"{name}/{part.name}")):
        with pytest.raises(SourceError, match=r"give (the whole|their) folder"):
            open_checkpoint(source, file=file)


def test_a_gap_between_slices(saves: Path, tmp_path: Path) -> None:
    for rank in (1, 2, 4):
        name = f"shard-0000{rank}-model-00001-of-00001.safetensors"
        (tmp_path / name).write_bytes((saves / "slices" / name).read_bytes())
    with pytest.raises(SourceError, match=r"'0\.bias' of shape \[132\] in 3 chunks, and its chunks leave gaps"):
        open_checkpoint(tmp_path)


def test_the_first_process_alone_is_read_with_a_note(saves: Path, tmp_path: Path) -> None:
    name = "shard-00001-model-00001-of-00001.safetensors"
    (tmp_path / name).write_bytes((saves / "slices" / name).read_bytes())
    note = r"one process's slices in .*: that the files of other processes are missing could not be seen"
    assert any(re.search(note, line) for line in open_checkpoint(tmp_path).notes)


def test_one_process_and_its_optimizer(tmp_path: Path) -> None:
    model = network()
    optimizer = trained(model)
    save_one(tmp_path / "a", {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 3, "lr": None})
    checkpoint = open_checkpoint(tmp_path / "a")
    assert_holds(checkpoint, model.state_dict())
    assert f"Left out 15 tensors of an optimizer's state in {tmp_path / 'a'}." in checkpoint.notes
    for other in (open_checkpoint(tmp_path / "a" / ".metadata"), open_checkpoint(tmp_path, file="a")):
        assert_holds(other, model.state_dict())


def test_an_optimizer_alone_is_refused(tmp_path: Path) -> None:
    model = network()
    save_one(tmp_path / "a", {"optimizer": trained(model).state_dict()})
    with pytest.raises(SourceError, match="is an optimizer's state: give the folder of the weights"):
        open_checkpoint(tmp_path / "a")


TYPES = [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint16, torch.bool]


@pytest.mark.parametrize("form", SerializationFormat)
def test_types_strides_and_empty_tensors(tmp_path: Path, form: SerializationFormat) -> None:
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(6, 5, generator=generator).mul(9).to(dtype) for dtype in TYPES]
    tensors = {f"t{i}.weight": tensor for i, tensor in enumerate(made)}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "one": torch.ones(1)}
    if form is SerializationFormat.TORCH_SAVE:  # safetensors stores no strides
        tensors |= {
            "t.weight": torch.randn(7, 5).T,
            "cut.weight": torch.randn(9, 8)[2:7, 3:5],
            "c": torch.randn(4).expand(3, 4),
        }
    folder = save_one(tmp_path / "a", tensors, FileSystemWriter(tmp_path / "a", serialization_format=form))
    listed = {tensor.name: tensor for tensor in list_distributed(folder / ".metadata", "a/.metadata").tensors}
    assert set(listed) == set(tensors)
    for name, tensor in tensors.items():
        values = tensor.contiguous()
        bits = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}.get(tensor.dtype, tensor.dtype)
        assert np.array_equal(listed[name].read(None), values.view(bits).numpy())
        if tensor.dim() and len(tensor):
            assert np.array_equal(listed[name].read(0), values[0].view(bits).numpy())


@pytest.mark.parametrize("options", [{"single_file_per_rank": False}, {"thread_count": 3}], ids=str)
def test_many_files_of_one_process(tmp_path: Path, options: dict[str, Any]) -> None:
    model = network()
    writer = FileSystemWriter(tmp_path / "a", **options)
    save_one(tmp_path / "a", {"model": model.state_dict()}, writer)
    assert len(list((tmp_path / "a").glob("*.distcp"))) > 2
    assert_holds(open_checkpoint(tmp_path / "a"), model.state_dict())


def test_the_merged_model_beside_its_slices_is_taken(tmp_path: Path) -> None:
    model = network().state_dict()
    writer = HuggingFaceStorageWriter(str(tmp_path / "a"), save_distributed=True, enable_consolidation=True)
    save_one(tmp_path / "a", model, writer)
    assert (tmp_path / "a" / "sharded").is_dir()
    checkpoint = open_checkpoint(tmp_path / "a")
    assert_holds(checkpoint, model)
    assert not any("sharded" in file for file in checkpoint.source.files)


GRID = [((r, c, 0), (min(3, 7 - r), min(4, 10 - c), 5)) for r in range(0, 7, 3) for c in range(0, 10, 4)]


def test_stacks_are_read_one_by_one_from_their_own_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading one tensor, or one matrix of a stack, opens no chunk of any other."""
    stack, other = torch.randn(7, 10, 5), torch.randn(8, 6)
    cuts: Mapping[str, Any] = {"stack": GRID, "other": [((0, 0), (8, 6))]}
    save_chunks(tmp_path / "a", {"stack": stack, "other": other}, cuts)
    listed = {tensor.name: tensor for tensor in list_distributed(tmp_path / "a" / ".metadata", "a/.metadata").tensors}
    read: list[int] = []
    values = plain_values.read_range

    def counted(path: Path, label: str, offset: int, out: Any) -> None:
        read.append(out.nbytes)
        values(path, label, offset, out)

    monkeypatch.setattr("specdiag.checkpoint.distributed.values.read_range", counted)
    assert np.array_equal(listed["stack"].read(4), stack[4].numpy())
    assert sum(read) == stack[4].nbytes
    read.clear()
    assert np.array_equal(listed["stack"].read(None), stack.numpy())
    assert (sum(read), len(read)) == (stack.nbytes, len(GRID))
    (tmp_path / "a" / "__1_0.distcp").unlink()
    assert np.array_equal(listed["other"].read(None), other.numpy())


def test_covers() -> None:
    assert uncovered((7, 10, 5), GRID) is None
    assert uncovered((), [((), ())]) is None
    assert uncovered((0, 3), []) is None
    assert uncovered((5,), [((0,), (5,)), ((5,), (0,))]) is None
    assert uncovered((7, 10, 5), GRID[:-1]) == "leave gaps"
    assert uncovered((7, 10, 5), [*GRID, GRID[3]]) == "overlap"
    assert uncovered((7, 10, 5), [*GRID[:4], GRID[3], *GRID[5:]]) == "overlap, and leave gaps"
    assert uncovered((7, 10), GRID) == "have another number of dimensions"
    assert uncovered((7, 9, 5), GRID) == "reach beyond it"
    rng = np.random.default_rng(0)
    for _ in range(300):
        boxes = [
            tuple(zip(*((a := int(rng.integers(4)), int(rng.integers(5 - a))) for _ in "xy"), strict=True))
            for _ in range(4)
        ]
        painted = np.zeros((4, 4), int)
        for (r, c), (height, width) in boxes:
            painted[r : r + height, c : c + width] += 1
        assert (uncovered((4, 4), boxes) is None) == bool((painted == 1).all())


def test_a_hundred_thousand_chunks_are_listed_soon(tmp_path: Path) -> None:
    rows = [ChunkStorageMetadata(torch.Size([i, 0]), torch.Size([1, 8])) for i in range(1000)]
    names = [f"layers.{i}.mlp.up_proj.weight" for i in range(100)]
    entry = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size([1000, 8]), rows)
    stored = {
        MetadataIndex(name, chunk.offsets, i): _StorageInfo(f"__{i}_0.distcp", 100 * n, 100)
        for n, name in enumerate(names)
        for i, chunk in enumerate(rows)
    }
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata(dict.fromkeys(names, entry), None, stored)))
    for i in range(1000):
        (tmp_path / f"__{i}_0.distcp").write_bytes(bytes(100 * 100))
    begin = time.process_time()
    listing = list_distributed(tmp_path / ".metadata", "a/.metadata")
    assert time.process_time() - begin < 30
    assert len(listing.tensors) == 100
    assert len(listing.beside) == 1000


def test_old_homes_of_classes(tmp_path: Path) -> None:
    """Before torch 2.3 the properties of a tensor were a class of another module."""
    model = network().state_dict()
    save_one(tmp_path / "a", {"model": model})
    change_metadata(tmp_path / "a", lambda metadata: vars(metadata).update(version=None, storage_meta=None))
    path = tmp_path / "a" / ".metadata"
    home, old = (b"torch.distributed.checkpoint.metadata", b"torch.distributed._shard.sharded_tensor.metadata")
    data = pickle.dumps(pickle.loads(path.read_bytes()), protocol=2)
    for name in (b"TensorProperties", b"_MEM_FORMAT_ENCODING"):
        assert b"c" + home + b"\n" + name in data
        data = data.replace(b"c" + home + b"\n" + name, b"c" + old + b"\n" + name)
    path.write_bytes(data)
    assert_holds(open_checkpoint(tmp_path / "a"), model)
