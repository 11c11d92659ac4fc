"""Model and optimizer sharded over the processes by FSDP2, as `accelerate launch --use_fsdp --fsdp_version 2` asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.parameters import ParamGroup
from specdiag.system.gathering import gather, is_sharded, raise_together
from specdiag.train.ranks import count_ranks

_Key = TypeVar("_Key")
_ASKED = "ACCELERATE_USE_FSDP"
_REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""Variables that accelerate launch sets, and what they ask for."""


def check_launch() -> None:
    """Check what accelerate launch asks for, before a model is loaded. Each process then loads the whole model.

    Raises:
        UsageError: it asks for DeepSpeed, Megatron-LM, a parallelism config, FSDP1 or CPU offload.
    """
    asked = next((what for variable, what in _REFUSED.items() if _is_set(variable)), None)
    if asked is not None:
        raise UsageError(
            f"accelerate launch asks for {asked}, with which specdiag does not train: use FSDP with fsdp_version=2, "
            "or several processes alone"
        )
    if not _is_set(_ASKED):
        return
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UsageError(
            f"accelerate launch asks for FSDP{version}, which shows pieces of weights only: set fsdp_version=2"
        )
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        raise UsageError(
            "accelerate launch asks for CPU offload, with which specdiag does not train: set fsdp_offload_params=false"
        )
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else the weights of all ranks but one are no numbers yet


def shard(accelerator: Accelerator) -> bool:
    """Let an accelerator shard what it prepares, if accelerate launch asked for FSDP. Accelerate does not on a CPU.

    Args:
        accelerator: of a Trainer that has not prepared its model.

    Returns:
        True if it will shard the model; False with one process, too.
    """
    state = accelerator.state
    if _is_set(_ASKED) and count_ranks() > 1 and state.distributed_type == DistributedType.MULTI_CPU:
        plugin = state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        state.distributed_type = DistributedType.FSDP
        PartialState().distributed_type = DistributedType.FSDP
    return getattr(state, "fsdp_plugin", None) is not None


def reshard(model: nn.Module) -> None:
    """Free whole weights, after which the Parameters of a sharded model are those of its optimizer again.

    Args:
        model: of which any modules may be sharded.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Put the state of a sharded model together on the first process. Collective.

    Args:
        model: of which any tensors may be sharded.

    Returns:
        Its `state_dict()`, in which tied tensors stay one; empty on all processes but the first.
    """
    tensors = model.state_dict(keep_vars=True)
    found = _whole({id(tensor): tensor for tensor in tensors.values()})
    return {name: found[id(tensor)] for name, tensor in tensors.items() if id(tensor) in found}


def whole_state(optimizer: Optimizer) -> Table:
    """Put the state of an optimizer of sharded Parameters together on the first process. Collective.

    Args:
        optimizer: of which any state may be sharded.

    Returns:
        Its `state_dict()` as one process has it; without state on all processes but the first.
    """
    saved = optimizer.state_dict()
    state = cast("dict[object, Table]", saved["state"])
    places = [(key, name) for key, own in state.items() for name, value in own.items() if torch.is_tensor(value)]
    found = _whole({place: state[place[0]][place[1]] for place in places})
    if not PartialState().is_main_process:
        return {**saved, "state": {}}
    whole = {key: {name: found.get((key, name), value) for name, value in own.items()} for key, own in state.items()}
    return {**saved, "state": whole}


def sharded_state(
    groups: list[ParamGroup], state: Mapping[object, Mapping[str, object]], optimizer: Optimizer
) -> Table:
    """Cut the state of an optimizer as its Parameters are cut.

    Args:
        groups: groups of the saved optimizer, whose `params` are keys of its state.
        state: the whole state by key.
        optimizer: with the same Parameters in the same order.

    Returns:
        What `optimizer.load_state_dict` takes.
    """
    keys = [key for group in groups for key in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        key: {name: _cut(value, parameter) for name, value in state[key].items()}
        for key, parameter in zip(keys, parameters, strict=True)
        if key in state
    }
    return {"state": cut, "param_groups": groups}


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _whole(tensors: Mapping[_Key, torch.Tensor]) -> dict[_Key, torch.Tensor]:
    """Put tensors together in the first process's memory; nothing elsewhere, but for what was whole. Collective."""
    found: dict[_Key, torch.Tensor] = {}
    failure: Exception | None = None
    for key, tensor in tensors.items():
        whole = gather(tensor, [0])
        if whole is None or failure is not None:
            continue
        try:
            found[key] = whole.detach().cpu()
        except (RuntimeError, MemoryError) as error:  # raised when the others have sent what they are asked for
            failure = error
            found.clear()
    if count_ranks() > 1:
        raise_together(failure)
    return found


def _cut(value: object, parameter: Any) -> object:
    """Return this process's shard of a tensor that has the shape of a sharded Parameter; any other value as it is."""
    if not (
        isinstance(value, torch.Tensor) and value.ndim and value.shape == parameter.shape and is_sharded(parameter)
    ):
        return value
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
