"""ShardedTensors of FSDP in files of torch.save: the shards of one process, each with its place in the whole tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.torch_tensors import Unread

NAMES = (
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor",
    "torch.distributed._shard.sharded_tensor.ShardedTensor",
)
_LARGEST = 1 << 62
Shard = tuple[tuple[int, ...], torch.Tensor]
"""The offsets of a shard in its tensor, and its values."""


class RankPart(Unread):
    """A tensor of which a process has a part.

    Attributes:
        shards: with their places.
        axis: along which all processes' parts follow one another where places are not told; None elsewhere.
        placements: of a DTensor, one for each axis of its mesh of processes; empty for others.
    """

    shards: tuple[Shard, ...]
    axis: int | None
    placements: tuple[str, ...] = ()

    @staticmethod
    def holding(
        size: Sequence[int], dtype: torch.dtype, kind: str, shards: Sequence[Shard], axis: int | None = None
    ) -> RankPart:
        """Make the part of a tensor.

        Args:
            size: of the whole tensor.
            dtype: its type.
            kind: name of its class.
            shards: what the process has of it.
            axis: along which parts without places follow one another.
        """
        part = torch.empty(tuple(size), dtype=dtype, device="meta").as_subclass(RankPart)
        part.oddity = f"{kind}: one rank's part"
        part.shards, part.axis = tuple(shards), axis
        return part


def local_shards(args: object, state: object) -> torch.Tensor | None:
    """Take the values that a process kept of a ShardedTensor.

    Args:
        args: what makes the tensor: class, type, shape of the whole, and more.
        state: its attributes, the local shards first.

    Returns:
        The only shard where it is the whole tensor, else a part; None for anything else.
    """
    fields: Sequence[object] = cast("Sequence[object]", args) if isinstance(args, (list, tuple)) else []
    held = next(iter(cast("Sequence[object]", state)), None) if isinstance(state, tuple) else None
    size = whole_sizes(fields[2]) if len(fields) > 2 else None
    dtype = fields[1] if size is not None else None
    if size is None or not isinstance(held, list) or not isinstance(dtype, torch.dtype):
        return None
    shards = [_shard(record, len(size)) for record in cast("list[object]", held)]
    there = [shard for shard in shards if shard is not None]
    if len(there) < len(shards):
        return None
    if len(there) == 1 and tuple(there[0][1].shape) == size:
        return there[0][1]
    return RankPart.holding(size, dtype, "ShardedTensor", there)


def whole_sizes(values: object) -> tuple[int, ...] | None:
    """Check sizes or offsets; None where they are no whole numbers, or negative.

    Args:
        values: as the file holds them.
    """
    numbers = tuple(cast("Sequence[object]", values)) if isinstance(values, (list, tuple)) else None
    if numbers is None or not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
        return None
    return cast("tuple[int, ...]", numbers)


def _shard(record: object, n_axes: int) -> Shard | None:
    attributes = _attributes(record)
    values, offsets = attributes.get("tensor"), _attributes(attributes.get("metadata")).get("shard_offsets")
    place = whole_sizes(offsets)
    if not isinstance(values, torch.Tensor) or place is None or not len(place) == values.dim() == n_axes:
        return None
    return place, values


def _attributes(record: object) -> Mapping[object, object]:
    """Give the attributes of a record that was not made; a tuple ends with those in slots."""
    state = record.state[0] if isinstance(record, Inert) and len(record.state) == 1 else None
    slots = cast("Sequence[object]", state)[-1] if isinstance(state, tuple) and state else state
    return cast("Mapping[object, object]", slots) if isinstance(slots, Mapping) else {}
