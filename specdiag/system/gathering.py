"""Whole tensors from their shards, at the processes that need them (FSDP2, tensor parallelism: DTensor)."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

from specdiag.errors import ComputationError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: torch.Tensor) -> bool:
    """Return True for a DTensor, whose values lie on several processes."""
    return hasattr(tensor, "full_tensor")


def gather(tensor: torch.Tensor, ranks: Collection[int]) -> torch.Tensor | None:
    """Put a tensor together where it is needed. Collective: every process of its mesh calls it, in the same order.

    Shards on one axis of a mesh travel to a single rank alone, once each. Any other placement, or several ranks, makes
    the whole tensor on all of them. Memory is taken before anything travels: all raise where one has too little.

    Args:
        tensor: a DTensor; a plain tensor is returned as it is.
        ranks: of the processes that need it.

    Returns:
        The whole tensor on the mesh's device; None on ranks that do not need it.

    Raises:
        ComputationError: another process has too little memory; a failure of this one is raised as it is.
    """
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Shard

    sharded = cast("DTensor", tensor.detach())
    mesh, placements = sharded.device_mesh, sharded.placements
    own, owner = dist.get_rank(), next(iter(ranks))
    travels_once = len(placements) == len(ranks) == 1 and isinstance(placements[0], Shard) and owner in mesh.mesh
    groups = [mesh.get_group(axis) for axis in range(mesh.ndim)]
    if not travels_once:
        with _taken_by_all(groups):
            _empty(sharded.shape, sharded)
        whole = sharded.full_tensor()
        return whole if own in ranks else None
    axis, size, world = cast("Shard", placements[0]).dim % sharded.ndim, sharded.shape, mesh.size()
    longest = -(-size[axis] // world)
    shape = (*size[:axis], longest, *size[axis + 1 :])
    received, whole = None, None
    with _taken_by_all(groups):
        local = sharded.to_local().to(mesh.device_type)
        padded = local.new_zeros(shape)
        padded.narrow(axis, 0, local.shape[axis]).copy_(local)
        if own == owner:
            received = _empty((world, *shape), local)
            whole = received.flatten(0, 1).narrow(0, 0, size[0]) if axis == 0 else _empty(size, local)
    parts = None if received is None else [_sendable(part) for part in received]
    dist.gather(_sendable(padded), parts, dst=owner, group=groups[0])
    if received is None or whole is None:
        return None
    for number, part in enumerate(received if axis else ()):
        begin = min(number * longest, size[axis])
        n = min(longest, size[axis] - begin)
        whole.narrow(axis, begin, n).copy_(part.narrow(axis, 0, n))
    return whole


def raise_together(failure: Exception | None, groups: Sequence[dist.ProcessGroup | None] = (None,)) -> None:
    """Let all processes raise where one failed. Collective.

    Args:
        failure: what went wrong at this process; None for nothing.
        groups: of processes that need each other, each of which meets; None for all processes.

    Raises:
        ComputationError: another process failed; a failure of this one is raised as it is.
    """
    gloo = "gloo" in str(dist.get_backend(groups[0]))
    failed = torch.tensor(
        0 if failure is None else dist.get_rank() + 1,
        device=None if gloo else torch.accelerator.current_accelerator(),
    )
    for group in groups:
        dist.all_reduce(failed, dist.ReduceOp.MAX, group)
    if failure is not None:
        raise failure
    if failed:
        raise ComputationError(f"process {int(failed) - 1} could not put tensors together: its own error says why")


@contextmanager
def _taken_by_all(groups: Sequence[dist.ProcessGroup]) -> Generator[None]:
    failure: Exception | None = None
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        failure = error
    raise_together(failure, groups)


def _empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)


def _sendable(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of small types, of which gloo knows few."""
    return tensor.view(torch.uint8) if tensor.element_size() < 4 else tensor
