"""Updates of an optimizer divided among ranks that hold the same parameters: one rank computes, all get its bits."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

import torch
import torch.distributed as dist


class Shards:
    """Assignment of parameters to the ranks that update them.

    Every rank must add the same parameters in the same order.
    """

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        """Begin without parameters.

        Args:
            process_group: its ranks share the work; None for all ranks.
        """
        self._group = process_group
        self._rank = dist.get_rank(process_group)
        self._work = [0.0] * dist.get_world_size(process_group)
        self._owners: dict[torch.Tensor, int] = {}

    def add(self, parameters: Iterable[torch.Tensor]) -> None:
        """Assign each parameter of two axes or more to the rank with the least work, the most expensive first.

        Vectors stay with every rank: updating one costs less than sending it.

        Args:
            parameters: the same on every rank, in the same order.
        """
        matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
        for parameter in sorted(matrices, key=_work, reverse=True):
            owner = min(range(len(self._work)), key=self._work.__getitem__)
            self._work[owner] += _work(parameter)
            self._owners[parameter] = owner

    def here(self, parameter: torch.Tensor) -> bool:
        """Return True where this rank updates the parameter."""
        return self._owners.get(parameter, self._rank) == self._rank

    def spread(self, parameters: Iterable[torch.Tensor]) -> None:
        """Copy each parameter from the rank that updates it to all others. Collective.

        Args:
            parameters: the same on every rank, in the same order; those that were not assigned are passed over.
        """
        self._broadcast([(p.detach(), self._owners[p]) for p in parameters if p in self._owners])

    def gather(
        self, parameters: Sequence[torch.Tensor], key: str, state: MutableMapping[torch.Tensor, dict[str, torch.Tensor]]
    ) -> None:
        """Give every rank the optimizer state of parameters that other ranks update. Collective.

        Args:
            parameters: the same on every rank, in the same order; those that were not assigned are passed over.
            key: entry of the state, a tensor of the parameter's shape.
            state: of the optimizer, by parameter; gets the entries that this rank lacks.
        """
        shared = [p for p in parameters if p in self._owners]
        if not shared:
            return
        exists = torch.tensor([self.here(p) and key in state.get(p, {}) for p in shared], device=shared[0].device).int()
        dist.all_reduce(exists, group=self._group)
        known = [p for p, found in zip(shared, exists.tolist(), strict=True) if found]
        for p in known:
            if not self.here(p):
                state[p][key] = torch.empty_like(p)
        self._broadcast([(state[p][key], self._owners[p]) for p in known])

    def _broadcast(self, values: Sequence[tuple[torch.Tensor, int]]) -> None:
        waiting: list[dist.Work | None] = []
        for value, owner in values:
            source = owner if self._group is None else dist.get_global_rank(self._group, owner)
            waiting.append(dist.broadcast(value, source, group=self._group, async_op=True))
        for work in waiting:
            if work is not None:
                work.wait()


def _work(parameter: torch.Tensor) -> float:
    """Operations of an orthogonalisation, up to a factor."""
    return float(parameter.numel()) * min(parameter.flatten(1).shape)
