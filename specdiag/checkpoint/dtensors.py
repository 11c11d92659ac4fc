"""DTensors in files of torch.save: one process's slice of a tensor, or all of it where nothing was divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.sharded_tensors import RankPart, whole_sizes
from specdiag.errors import SourceError

NAMES = (
    "torch.distributed.tensor.DTensor",
    "torch.distributed._tensor.api.DTensor",
    "torch.distributed._tensor.DTensor",
)
_WHOLE = ("Shard", "Replicate")
"""Placements whose local tensor is all of the tensor where it is as large. That of a partial sum is not."""


def local_values(args: object, state: object) -> torch.Tensor | None:
    """Take the values that a process kept of a DTensor.

    Args:
        args: what makes the tensor: class, type, shape of the whole, and more.
        state: its attributes, the local tensor and how the whole is placed; a tuple ends with those in slots.

    Returns:
        The local tensor where it certainly is the whole one; a tensor without values where it is a part, or may be one;
        None for anything else.
    """
    fields = cast("Sequence[object]", args) if isinstance(args, (list, tuple)) else ()
    slots = cast("Sequence[object]", state)[-1] if isinstance(state, tuple) and state else state
    attributes = cast("Mapping[object, object]", slots) if isinstance(slots, Mapping) else {}
    local, sizes = attributes.get("_local_tensor"), whole_sizes(fields[2]) if len(fields) > 2 else None
    if not isinstance(local, torch.Tensor) or sizes is None:
        return None
    placements = _placements(attributes.get("_spec"))
    names = [_name(placement) for placement in placements]
    if tuple(local.shape) == sizes and names and all(name in _WHOLE for name in names):
        return local
    axis = _axis(placements[0]) if names == ["Shard"] else None
    if axis is None or not axis < len(sizes) == local.dim():
        part = RankPart.holding(sizes, local.dtype, "DTensor", ())
        part.placements = tuple(names)
        return part
    return RankPart.holding(sizes, local.dtype, "DTensor", [((0,) * len(sizes), local)], axis)


def refuse_shards(weights: Mapping[str, torch.Tensor], label: str) -> None:
    """Refuse weights of which a file has one process's part.

    Args:
        weights: by name.
        label: the file, for messages.

    Raises:
        SourceError: some are such parts.
    """
    parts = {name: tensor for name, tensor in weights.items() if isinstance(tensor, RankPart)}
    if parts:
        first, part = next(iter(parts.items()))
        kind = part.oddity.partition(":")[0]
        raise SourceError(
            f"'{label}' holds one rank's part of {len(parts)} weights ({kind}s), such as '{brief(first)}': save "
            "the model with torch.distributed.checkpoint.save and give that folder, or save what "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) gives"
        )


def _placements(spec: object) -> Sequence[object]:
    """List how a DTensor is placed on each axis of its mesh; empty where the file does not tell."""
    state = spec.state[0] if isinstance(spec, Inert) and len(spec.state) == 1 else None
    held = cast("Mapping[object, object]", state).get("placements") if isinstance(state, Mapping) else None
    return cast("Sequence[object]", held) if isinstance(held, (list, tuple)) else ()


def _name(placement: object) -> str:
    return placement.made_by.name.rpartition(".")[2] if isinstance(placement, Inert) else ""


def _axis(shard: object) -> int | None:
    """Read the axis of a Shard; None where the file does not tell."""
    held = [*shard.state, *shard.args] if isinstance(shard, Inert) else []
    values = (
        cast("Mapping[object, object]", value).get("dim") if isinstance(value, Mapping) else value for value in held
    )
    return next((value for value in values if type(value) is int and value >= 0), None)
