"""Sharing the measurements among ranks that train one model: each measures its part, all learn the same bits."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from specdiag.errors import UsageError
from specdiag.live.matrices import LiveMatrix
from specdiag.spectra.live_alpha import Basis, exponents


class Replicas:
    """The ranks that hold the same Parameters, whole (DDP) or sharded (FSDP2, tensor parallelism by DTensor).

    Attributes:
        world: how many they are.
    """

    def __init__(self, matrices: Sequence[LiveMatrix], group: dist.ProcessGroup | None = None) -> None:
        """Collective: every rank of the group takes part.

        Args:
            matrices: what this rank will be asked to measure.
            group: a torch process group; None for all ranks, or one process.

        Raises:
            UsageError: the ranks hold different modules.
        """
        self._matrices = matrices
        self._group = group
        shared = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size(group) if shared else 1
        self._rank = dist.get_rank(group) if shared else 0
        if self.world > 1:
            device = matrices[0].parameter.device
            self._device = device if "nccl" in str(dist.get_backend(group)) else torch.device("cpu")
            self._check_alike()

    def measure(self, rounds: Sequence[Sequence[int]], basis: Basis) -> dict[int, float | None]:
        """Exponents of the matrices of these rounds by index, as `exponents` gives them. Collective."""
        mine: dict[int, float | None] = {}
        waiting: dict[int, torch.Tensor] = {}
        for members, cuts in zip(rounds, self.cuts(rounds), strict=True):
            waiting |= cuts
            # What was gathered is a copy: it goes before the next is made. Views can wait and go in one batch.
            if any(_is_sharded(self._matrices[i].parameter) for i in members):
                mine |= _flush(waiting, basis)
        mine |= _flush(waiting, basis)
        return self.shared(rounds, mine)

    def cuts(self, rounds: Sequence[Sequence[int]]) -> Iterator[dict[int, torch.Tensor]]:
        """For each round what this rank measures of it, as the weights are now, by index. Collective."""
        parameter, whole = None, torch.empty(0)
        for members in rounds:
            own: dict[int, torch.Tensor] = {}
            for place, index in enumerate(members):
                matrix = self._matrices[index]
                if matrix.parameter is not parameter:
                    parameter, whole = matrix.parameter, _gathered(matrix.parameter)
                if place == self._rank:
                    own[index] = matrix.cut(whole)
            yield own

    def shared(self, rounds: Sequence[Sequence[int]], mine: dict[int, float | None]) -> dict[int, float | None]:
        """The exponents of all, in the order of their indices, from those that each rank measured. Collective.

        One sum in float64: the other ranks add exact zeros. Infinity stands for None.
        """
        order = sorted(index for members in rounds for index in members)
        if self.world == 1:
            return {index: mine[index] for index in order}
        values = [(math.inf if mine[i] is None else mine[i]) if i in mine else 0.0 for i in order]
        vector = torch.tensor(cast("list[float]", values), dtype=torch.float64, device=self._device)
        dist.all_reduce(vector, group=self._group)
        return {i: None if math.isinf(value) else value for i, value in zip(order, vector.tolist(), strict=True)}

    def _check_alike(self) -> None:
        held = repr([(m.key, tuple(m.parameter.shape)) for m in self._matrices])
        code = zlib.crc32(held.encode())
        extremes = torch.tensor([code, -code], dtype=torch.int64, device=self._device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        if extremes.tolist() != [code, -code]:
            raise UsageError(
                "the ranks hold different modules (pipeline or expert parallelism), and a ratio needs the exponents of "
                "all: fix the decays when the optimizer is built, with plan = specdiag.recommend(checkpoint, "
                "weight_decay=...) and plan.param_groups(model, lr=...); for one group of replicas pass process_group"
            )


def _flush(waiting: dict[int, torch.Tensor], basis: Basis) -> dict[int, float | None]:
    found = dict(zip(waiting, exponents(list(waiting.values()), basis), strict=True))
    waiting.clear()
    return found


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "full_tensor")


def _gathered(parameter: nn.Parameter) -> torch.Tensor:
    """The whole tensor. Collective where it is a DTensor."""
    return cast("Any", parameter).full_tensor() if _is_sharded(parameter) else parameter
