"""Whole tensors from their shards, at the processes that need them (FSDP2, tensor parallelism: DTensor)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return True for a DTensor, whose values lie on several processes."""
    return hasattr(tensor, "full_tensor")


def gather(tensor: torch.Tensor, ranks: Collection[int]) -> torch.Tensor | None:
    """Put a tensor together where it is needed. Collective: every process of its mesh calls it, in the same order.

    Shards on one axis of a mesh travel to a single rank alone, once each, without the values that it holds. Any other
    placement, or several ranks, makes the whole tensor on all of them.

    Args:
        tensor: a DTensor; a plain tensor is returned as it is.
        ranks: of the processes that need it.

    Returns:
        The whole tensor on the mesh's device; None on ranks that do not need it.
    """
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Shard

    sharded = cast("DTensor", tensor.detach())
    mesh, placements = sharded.device_mesh, sharded.placements
    own, owner = dist.get_rank(), next(iter(ranks))
    travels_once = len(placements) == len(ranks) == 1 and isinstance(placements[0], Shard) and owner in mesh.mesh
    if not travels_once:
        whole = sharded.full_tensor()
        return whole if own in ranks else None
    axis, size, world = cast("Shard", placements[0]).dim % sharded.ndim, sharded.shape, mesh.size()
    longest = -(-size[axis] // world)
    group = mesh.get_group()
    local = sharded.to_local().to(mesh.device_type)
    padded = local.new_zeros((*size[:axis], longest, *size[axis + 1 :]))
    padded.narrow(axis, 0, local.shape[axis]).copy_(local)
    sent = padded.view(torch.uint8) if padded.element_size() < 4 else padded  # gloo knows few small types
    received = [torch.empty_like(sent) for _ in range(world)] if own == owner else None
    dist.gather(sent, received, dst=owner, group=group)
    if received is None:
        return None
    parts = [part.view(local.dtype) for part in received]
    return torch.cat(parts, axis).narrow(axis, 0, size[axis]).contiguous()
