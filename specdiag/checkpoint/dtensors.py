"""DTensors in files of torch.save: one process's slice of a tensor, or all of it where nothing was divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.torch_tensors import Unread
from specdiag.errors import SourceError

NAMES = (
    "torch.distributed.tensor.DTensor",
    "torch.distributed._tensor.api.DTensor",
    "torch.distributed._tensor.DTensor",
)
_PART = "DTensor: one rank's part"
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
    local, shape = attributes.get("_local_tensor"), fields[2] if len(fields) > 2 else None
    if not isinstance(local, torch.Tensor) or not isinstance(shape, tuple):
        return None
    sizes = cast("tuple[object, ...]", shape)
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        return None
    placements = _placements(attributes.get("_spec"))
    if tuple(local.shape) == sizes and placements and all(placement in _WHOLE for placement in placements):
        return local
    return Unread.of(cast("tuple[int, ...]", sizes), local.dtype, _PART)


def refuse_shards(weights: Mapping[str, torch.Tensor], label: str) -> None:
    """Refuse weights of which a file has one process's part.

    Args:
        weights: by name.
        label: the file, for messages.

    Raises:
        SourceError: some are such parts.
    """
    parts = [name for name, tensor in weights.items() if isinstance(tensor, Unread) and tensor.oddity == _PART]
    if parts:
        raise SourceError(
            f"'{label}' holds one rank's part of {len(parts)} weights (DTensors), such as '{brief(parts[0])}': save "
            "the model with torch.distributed.checkpoint.save and give that folder, or save what "
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) gives"
        )


def _placements(spec: object) -> list[str]:
    """Name how a DTensor is placed on each axis of its mesh; empty where the file does not tell."""
    state = spec.state[0] if isinstance(spec, Inert) and len(spec.state) == 1 else None
    held = cast("Mapping[object, object]", state).get("placements") if isinstance(state, Mapping) else None
    placements = cast("Sequence[object]", held) if isinstance(held, (list, tuple)) else ()
    return [one.made_by.name.rpartition(".")[2] if isinstance(one, Inert) else "" for one in placements]
