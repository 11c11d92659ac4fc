"""Work of an optimizer dealt to ranks that hold the same parameters: one computes, all get its bits."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

import torch
import torch.distributed as dist


class Shards:
    """Which rank updates which parameter. Every rank must add the same parameters in the same order."""

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        self._group = process_group
        self._rank = dist.get_rank(process_group)
        self._work = [0.0] * dist.get_world_size(process_group)
        self._owners: dict[torch.Tensor, int] = {}

    def add(self, parameters: Iterable[torch.Tensor]) -> None:
        """Deal out those with two axes and more, the most work first, each to the rank with the least.

        Vectors stay with everyone: updating one costs less than sending it.
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
        """Give every rank the owners' values. Collective."""
        self._broadcast([(p.detach(), self._owners[p]) for p in parameters if p in self._owners])

    def gather(
        self, parameters: Sequence[torch.Tensor], key: str, state: MutableMapping[torch.Tensor, dict[str, torch.Tensor]]
    ) -> None:
        """Give every rank the owners' `state[parameter][key]`, where there is one. Collective."""
        dealt = [p for p in parameters if p in self._owners]
        if not dealt:
            return
        held = torch.tensor([self.here(p) and key in state.get(p, {}) for p in dealt], device=dealt[0].device).int()
        dist.all_reduce(held, group=self._group)
        known = [p for p, is_held in zip(dealt, held.tolist(), strict=True) if is_held]
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
