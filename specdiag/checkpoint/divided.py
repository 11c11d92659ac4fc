"""Models whose tensors are divided among processes: each tensor is put together at one of them, which measures it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from specdiag.checkpoint.tensors import Division
from specdiag.errors import SourceError, UsageError
from specdiag.system.gathering import gather, is_sharded, raise_together


class Owned(torch.Tensor):
    """A tensor of a divided model, with shape and type everywhere and its values at one process.

    Attributes:
        owner: rank of that process.
        held: the whole tensor on the CPU; None elsewhere.
        device_type: of the mesh, where processes exchange values.
        division: of the model.
    """

    owner: int
    held: torch.Tensor | None
    device_type: str
    division: Division

    @staticmethod
    def of(tensor: torch.Tensor, whole: torch.Tensor | None, owner: int, division: Division) -> Owned:
        """Make the tensor.

        Args:
            tensor: a DTensor.
            whole: its values at their owner; None elsewhere.
            owner: rank that has the values.
            division: shared by all tensors of a model.
        """
        owned = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta").as_subclass(Owned)
        owned.owner, owned.division = owner, division
        owned.held = None if whole is None else whole.cpu()
        owned.device_type = tensor.device_mesh.device_type  # pyright: ignore
        return owned

    def present(self, name: str, index: int | None) -> torch.Tensor:
        """Return the values. While the processes read together this is collective, and every one gets them.

        Args:
            name: of the tensor, for the message.
            index: on the first axis; None for the whole.

        Raises:
            SourceError: they are at another process.
        """
        if self.division.together:
            own = None if self.held is None else self.held if index is None else self.held[index]
            shape = tuple(self.shape) if index is None else tuple(self.shape[1:])
            sent = (torch.empty(shape, dtype=self.dtype) if own is None else own.contiguous()).to(self.device_type)
            dist.broadcast(sent.view(torch.uint8) if sent.element_size() < 4 else sent, self.owner)
            return sent.cpu()
        if self.held is None:
            raise SourceError(
                f"'{name}' is divided among processes, and what is computed from it needs others beside it: give the "
                "state dict of get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, "
                "cpu_offload=True))"
            )
        return self.held if index is None else self.held[index]


def gathered(tensors: Mapping[object, object]) -> Mapping[object, object]:
    """Put each divided tensor together at one process, the largest first, each where there is least. Collective.

    On every process this takes the CPU's memory for its share of the model.

    Args:
        tensors: a state dict, the same on all processes.

    Returns:
        The same with `Owned` tensors in the place of divided ones; a state dict without these as it is.

    Raises:
        UsageError: the processes hold different tensors, as under pipeline parallelism.
        ComputationError: another process failed; a failure of this one is raised as it is.
    """
    sharded = {id(t): t for t in tensors.values() if isinstance(t, torch.Tensor) and is_sharded(t)}
    if not sharded:
        return tensors
    world = dist.get_world_size()
    names: list[object] = [None] * world
    dist.all_gather_object(names, [(name, tuple(getattr(t, "shape", ()))) for name, t in tensors.items()])
    if any(each != names[0] for each in names):
        raise UsageError(
            "the processes hold different tensors (pipeline or expert parallelism): analyse a saved checkpoint instead"
        )
    order, loads, owners = list(sharded), [0] * world, dict[int, int]()
    for key in sorted(order, key=lambda key: -sharded[key].numel()):
        owners[key] = loads.index(min(loads))
        loads[owners[key]] += sharded[key].numel()
    division = Division()
    owned: dict[int, Owned] = {}
    failure: Exception | None = None
    for key in order:
        whole = gather(sharded[key], (owners[key],))
        try:
            owned[key] = Owned.of(sharded[key], None if failure else whole, owners[key], division)
        except (RuntimeError, MemoryError) as error:  # too little memory of the CPU
            failure = error
            owned.clear()
    raise_together(failure)
    return {name: owned.get(id(tensor), tensor) for name, tensor in tensors.items()}
