"""State dicts of FSDP2 that every process saved for itself with torch.save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import python

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

SAVE = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

folder, world = sys.argv[1], int(sys.argv[2])
dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
mesh = init_device_mesh("cpu", (world,))
whole = torch.arange(64.0).reshape(8, 8)
local = {"shard": whole[: 8 // world].clone(), "replicate": whole, "partial": whole}
for name, placement in {"shard": Shard(0), "replicate": Replicate(), "partial": Partial()}.items():
    tensor = DTensor.from_local(local[name], mesh, [placement], run_check=False)
    state = {"layers.0.attention.wq.weight": tensor, "norm.weight": torch.ones(8)}
    torch.save({"model": state, "step": 7}, f"{folder}/{name}_{world}.pt")
    torch.save(state, f"{folder}/{name}_{world}_flat.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtensors")
    for world in (1, 2):
        python(SAVE, folder, world)
    return folder


@pytest.mark.parametrize("name", ["shard_1", "shard_1_flat", "replicate_1", "replicate_2"])
def test_a_whole_tensor_is_read(folder: Path, name: str) -> None:
    (matrix,) = open_checkpoint(folder / f"{name}.pt").matrices
    assert torch.equal(matrix.load(), torch.arange(64.0).reshape(8, 8))


@pytest.mark.parametrize("name", ["shard_2", "shard_2_flat", "partial_1", "partial_2"])
def test_a_part_is_refused_by_its_name(folder: Path, name: str) -> None:
    sentence = (
        r"holds one rank's part of 1 weights \(DTensors\), such as 'layers.0.attention.wq.weight': save the model"
    )
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(folder / f"{name}.pt")
