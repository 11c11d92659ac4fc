"""Checkpoints in pieces, written from the descriptions of their layouts: DeepSpeed, GPT-NeoX, Megatron, Meta."""

from __future__ import annotations

import argparse
import enum
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]


class ZeroStage(enum.Enum):
    """DeepSpeed's own is an enumeration in some versions."""

    gradients = 2


class LossScaler:
    """An object of a library that is not installed where the checkpoint is read."""

    def __init__(self) -> None:
        self.cur_scale = 1.0


def zero(
    folder: Path, stage: int, world: int, groups: Sequence[State], beside: Mapping[str, Any] | None = None,
    buffers: State | None = None, tag: str = "global_step10",
) -> Path:  # fmt: skip
    """Write a folder of DeepSpeed ZeRO with a file of its optimizer for each process, and `latest`."""
    steps = folder / tag
    steps.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    truth = {name: tensor for group in groups for name, tensor in group.items()}
    model = {
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups],
        "buffer_names": list(buffers or {}),
        "mp_world_size": 1,
        "dp_world_size": world,
        "optimizer": None,
        "loss_scaler": LossScaler(),
        **(beside or {}),
    }
    vectors = (_stage_3 if stage == 3 else _stage_2)(groups, world)
    for rank, vector in enumerate(vectors):
        state = {
            "loss_scaler": LossScaler(),
            "zero_stage": ZeroStage.gradients if stage == 2 else stage,
            "partition_count": world if stage == 3 else [world] * len(groups),
            "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups": vector,
        }
        torch.save({"optimizer_state_dict": state}, steps / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3:
            module = {name: torch.empty(0, dtype=torch.bfloat16) for name in truth} | (buffers or {})
            torch.save({**model, "module": module}, steps / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage != 3:
        module = {name: tensor.bfloat16() for name, tensor in truth.items()} | (buffers or {})
        torch.save({**model, "module": module}, steps / "mp_rank_00_model_states.pt")
    return steps


def _stage_2(groups: Sequence[State], world: int) -> Iterator[list[torch.Tensor]]:
    """Parameters end to end, padded for equal parts; the padding is cut off the last one again."""
    parts: list[list[torch.Tensor]] = []
    for group in groups:
        flat = torch.cat([tensor.flatten() for tensor in group.values()])
        size = 2 * math.ceil(len(flat) / (2 * world))
        padded = torch.cat([flat, torch.zeros(size * world - len(flat))])
        pieces = [piece.clone() for piece in padded.split(size)]
        pieces[-1] = pieces[-1][: max(len(flat) - size * (world - 1), 0)].clone()
        parts.append(pieces)
    yield from (list(pieces) for pieces in zip(*parts, strict=True))


def _stage_3(groups: Sequence[State], world: int) -> Iterator[list[torch.Tensor]]:
    """Each parameter padded for equal parts; sub-groups that end anywhere."""
    for rank in range(world):
        pieces = []
        for group in groups:
            for tensor in group.values():
                size = math.ceil(tensor.numel() / world)
                padded = torch.cat([tensor.flatten(), torch.zeros(size * world - tensor.numel())])
                pieces.append(padded[rank * size : (rank + 1) * size])
        flat = torch.cat(pieces)
        yield [part.clone() for part in (flat[: len(flat) // 3], flat[len(flat) // 3 :])]


def universal(folder: Path, state: State) -> Path:
    """Write a universal checkpoint of DeepSpeed."""
    for name, tensor in state.items():
        (folder / "zero" / name).mkdir(parents=True)
        torch.save({"param": tensor, "cat_dim": 0}, folder / "zero" / name / "fp32.pt")
        torch.save({"param": tensor * 0}, folder / "zero" / name / "exp_avg.pt")
    return folder


def cut(tensor: torch.Tensor, axis: int | None, ranks: int) -> list[torch.Tensor]:
    """Slices of a tensor, or copies of it."""
    return [tensor.clone() for _ in range(ranks)] if axis is None else [t.clone() for t in tensor.chunk(ranks, axis)]


def megatron(
    folder: Path, state: State, axes: Mapping[str, int | None], *, tensor: int = 1, stages: int = 1,
    gated: bool = False, args: Mapping[str, Any] | None = None, version: float = 3.0, layers: int = 2,
) -> Path:  # fmt: skip
    """Write an iteration of Megatron in the legacy layout; `axes` by the ends of names, `state` with layers in a row."""
    (folder / "latest_checkpointed_iteration.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("5")
    per_stage = layers // stages
    for stage in range(stages):
        local = dict(_of_stage(state, stage, stages, per_stage))
        for rank in range(tensor):
            model = {}
            for name, whole in local.items():
                axis = next((axis for end, axis in axes.items() if name.endswith(end)), None)
                if gated and ".linear_fc1." in name:
                    model[name] = torch.cat([half.chunk(tensor)[rank] for half in whole.chunk(2)])
                else:
                    model[name] = cut(whole, axis, tensor)[rank]
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            (folder / "iter_0000005" / name).mkdir(parents=True)
            content = {
                "args": argparse.Namespace(
                    tensor_model_parallel_size=tensor, pipeline_model_parallel_size=stages, **(args or {})
                ),
                "checkpoint_version": version,
                "iteration": 5,
                "model": {**model, "decoder.final_layernorm._extra_state": None},
                "optimizer": {"state": {0: {"exp_avg": torch.zeros(4, 4)}}, "param_groups": [{"params": [0]}]},
            }
            torch.save(content, folder / "iter_0000005" / name / "model_optim_rng.pt")
    return folder


def _of_stage(state: State, stage: int, stages: int, per_stage: int) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        before, layers, after = name.partition("layers.")
        if layers:
            number, _, rest = after.partition(".")
            if int(number) // per_stage == stage:
                yield f"{before}layers.{int(number) % per_stage}.{rest}", tensor
        elif ("embedding" in name and stage == 0) or ("embedding" not in name and stage == stages - 1):
            yield name, tensor


def meta(folder: Path, state: State, axes: Mapping[str, int | None], ranks: int) -> Path:
    """Write Meta's consolidated.NN.pth; `axes` by the ends of names."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = {
        name: cut(tensor, next((axis for end, axis in axes.items() if name.endswith(end)), None), ranks)
        for name, tensor in state.items()
    }
    for rank in range(ranks):
        torch.save({name: cuts[rank] for name, cuts in pieces.items()}, folder / f"consolidated.{rank:02d}.pth")
    return folder
