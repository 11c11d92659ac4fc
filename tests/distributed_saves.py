"""Saves one model from several processes, as programs with FSDP2 and tensor parallelism do. Runs in each rank."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import PartialState
from accelerate.utils.fsdp_utils import save_fsdp_model, save_fsdp_optimizer
from lightning.fabric.strategies.model_parallel import _save_checkpoint
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import StateDictType, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def _model(*, parallel: bool) -> nn.Module:
    """Layers whose sizes no number of processes divides, cut in both directions where `parallel`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(37, 132), nn.Linear(132, 53), nn.LayerNorm(53), nn.Linear(53, 3, bias=False))
    if parallel:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        return fully_shard(model, mesh=mesh["dp"])
    return fully_shard(model)


def _whole(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).contiguous() for name, t in state.items()}


def _save_by_programs(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save by the functions that accelerate and Lightning save with."""
    plugin: Any = SimpleNamespace(
        fsdp_version=2, state_dict_type=StateDictType.SHARDED_STATE_DICT, state_dict_config=SimpleNamespace()
    )
    PartialState(cpu=True)
    save_fsdp_model(plugin, None, model, folder / "checkpoint-1")
    save_fsdp_optimizer(plugin, None, optimizer, model, folder / "checkpoint-1")
    state = {"model": model, "optimizer": optimizer, "epoch": 1}
    _save_checkpoint(path=folder / "fabric.ckpt", state=state, full_state_dict=False, rank=dist.get_rank())


def main(folder: Path) -> None:
    """Write a folder for each writer, and the truth."""
    dist.init_process_group("gloo")
    model = _model(parallel=True)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(torch.randn(2, 37)).sum().backward()
    optimizer.step()
    state = get_model_state_dict(model)
    dcp.save({"model": state, "optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=folder / "dcp")
    _save_by_programs(folder, model, optimizer)
    flat = _model(parallel=False)
    writer = HuggingFaceStorageWriter(str(folder / "slices"), save_distributed=True)
    dcp.save(get_model_state_dict(flat), storage_writer=writer)
    truth = {"dcp": _whole(state), "slices": _whole(get_model_state_dict(flat))}
    if dist.get_rank() == 0:
        for name, tensors in truth.items():
            save_file(tensors, folder / f"{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
