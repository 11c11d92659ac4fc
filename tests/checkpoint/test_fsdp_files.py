"""Files of FSDP, one a process, written by torch: their shards are joined where all are there, else refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from command import python
from read_back import assert_stored

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

SAVE = """
import sys
import warnings
from contextlib import suppress
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard as Piece
from torch.distributed._shard.sharded_tensor import ShardedTensor, ShardMetadata
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

warnings.simplefilter("ignore")
folder = sys.argv[1]
torch.manual_seed(0)
whole = {
    "layers.0.self_attn.q_proj.weight": torch.randn(7, 5),
    "layers.0.mlp.up_proj.weight": torch.randn(9, 5),
    "layers.0.mlp.down_proj.weight": torch.randn(5, 9),
    "score.weight": torch.randn(1, 5),
}
copies = {"norm.weight": torch.ones(5)}
torch.save(whole | copies, f"{folder}/truth.pt")


def sharded(tensor, rank, world):
    size = -(-len(tensor) // world)
    places = [(r, tensor[r * size : (r + 1) * size].clone()) for r in range(world)]
    pieces = [ShardMetadata([r * size, 0], [*p.shape], f"rank:{r}/cpu") for r, p in places if len(p)]
    own = [Piece(places[rank][1], m) for m in pieces if m.shard_offsets[0] == rank * size]
    meta = ShardedTensorMetadata(pieces, tensor.size(), TensorProperties(dtype=tensor.dtype))
    return ShardedTensor._init_from_local_shards_and_global_metadata(own, meta)


def divided(name, tensor, rank, mesh):
    axis = 1 if "down" in name else 0
    pieces = tensor.tensor_split([min((r + 1) * -(-tensor.shape[axis] // 3), tensor.shape[axis]) for r in range(2)], axis)
    return DTensor.from_local(pieces[rank].clone(), mesh, [Shard(axis)], run_check=False, shape=tensor.shape,
                              stride=tensor.stride())


for rank in range(3):
    dist.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())
    mesh = init_device_mesh("cpu", (3,))
    old = {name: sharded(tensor, rank, 3) for name, tensor in whole.items()} | copies
    new = {name: divided(name, tensor, rank, mesh) for name, tensor in whole.items()} | copies
    torch.save(old, f"{folder}/sharded_{rank}.pt")
    torch.save({"model": old, "step": 3}, f"{folder}/nested_{rank}.pt")
    torch.save(new, f"{folder}/dtensor_{rank}.pt")
    torch.save({"_fsdp_wrapped_module.flat_param": sharded(torch.randn(9, 1), rank, 3)}, f"{folder}/flat_{rank}.pt")
    dist.destroy_process_group()
"""
MESH = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

for rank in range(4):
    dist.init_process_group("fake", rank=rank, world_size=4, store=FakeStore())
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    part = DTensor.from_local(torch.ones(4, 8), mesh, [Replicate(), Shard(0)], run_check=False)
    torch.save({"layers.0.mlp.up_proj.weight": part}, f"{sys.argv[1]}/model_world_size_4_rank_{rank}.pt")
    dist.destroy_process_group()
"""
VERL, ACCELERATE = "model_world_size_3_rank_{}.pt", "pytorch_model_fsdp_rank{}.bin"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    python(SAVE, folder)
    return folder


def place(written: Path, folder: Path, kind: str, name: str) -> Path:
    for rank in range(3):
        shutil.copy(written / f"{kind}_{rank}.pt", folder / name.format(rank))
    return folder


@pytest.mark.parametrize("name", [VERL, ACCELERATE])
@pytest.mark.parametrize("kind", ["sharded", "nested", "dtensor"])
def test_shards_of_all_processes_are_joined(written: Path, tmp_path: Path, kind: str, name: str) -> None:
    checkpoint = open_checkpoint(place(written, tmp_path, kind, name))
    assert_stored(checkpoint, torch.load(written / "truth.pt"))
    assert any(note.endswith("of 5 tensors from the shards of 3 processes.") for note in checkpoint.notes)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_process_that_is_missing(written: Path, tmp_path: Path, rank: int) -> None:
    place(written, tmp_path, "sharded", VERL)
    (tmp_path / VERL.format(rank)).unlink()
    with pytest.raises(SourceError, match=f"lacks the file of rank {rank}, one of 3 processes"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["sharded", "dtensor"])
def test_a_last_process_that_no_name_counts(written: Path, tmp_path: Path, kind: str) -> None:
    place(written, tmp_path, kind, ACCELERATE)
    (tmp_path / ACCELERATE.format(2)).unlink()
    with pytest.raises(SourceError, match=r"of shape .* in 2 chunks, and its chunks .*: a file is missing"):
        open_checkpoint(tmp_path)


def test_files_of_two_saves(written: Path, tmp_path: Path) -> None:
    place(written, tmp_path, "sharded", VERL)
    shutil.copy(written / "sharded_0.pt", tmp_path / "model_world_size_2_rank_0.pt")
    with pytest.raises(SourceError, match="holds files of 2 and of 3 processes: delete the older ones"):
        open_checkpoint(tmp_path)
    (tmp_path / "model_world_size_2_rank_0.pt").unlink()
    shutil.copy(written / "flat_1.pt", tmp_path / VERL.format(1))
    with pytest.raises(SourceError, match="in only some of its files: they are not of one checkpoint"):
        open_checkpoint(tmp_path)
    shutil.copy(written / "sharded_0.pt", tmp_path / VERL.format(1))
    with pytest.raises(SourceError, match="its chunks"):
        open_checkpoint(tmp_path)


def test_flattened_parameters_are_no_matrices(written: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"flattened into one vector, '.*flat_param', and nothing tells them apart"):
        open_checkpoint(place(written, tmp_path, "flat", ACCELERATE))


@pytest.mark.parametrize("kind", ["sharded", "nested"])
def test_one_file_under_any_name_is_refused(written: Path, kind: str) -> None:
    with pytest.raises(
        SourceError, match=r"one rank's part of \d weights \(ShardedTensors\), such as '.*': save the model"
    ):
        open_checkpoint(written / f"{kind}_1.pt")


def test_an_optimizer_beside_them_is_left_alone(written: Path, tmp_path: Path) -> None:
    place(written, tmp_path, "dtensor", VERL)
    for rank in range(3):
        torch.save({"state": {}, "param_groups": []}, tmp_path / f"optim_world_size_3_rank_{rank}.pt")
    assert len(open_checkpoint(tmp_path).source.files) == 3


def test_a_mesh_of_several_axes_is_named(tmp_path: Path) -> None:
    python(MESH, tmp_path)
    with pytest.raises(
        SourceError, match=r"over a mesh of processes of 2 axes \(Replicate, Shard\), which is not joined"
    ):
        open_checkpoint(tmp_path)
