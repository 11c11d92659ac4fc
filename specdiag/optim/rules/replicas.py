"""Division of measurements among ranks that train one model: each measures a part, and all get the same numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from specdiag.errors import ComputationError, UsageError
from specdiag.live.matrices import LiveMatrix
from specdiag.spectra.live_alpha import Basis, exponents
from specdiag.system.gathering import gather, is_sharded


class Replicas:
    """The ranks that hold the same Parameters, whole (DDP) or sharded (FSDP2, tensor parallelism by DTensor).

    Attributes:
        world: number of ranks.
    """

    def __init__(self, matrices: Sequence[LiveMatrix], group: dist.ProcessGroup | None = None) -> None:
        """Check that all ranks hold the same matrices. Collective.

        Args:
            matrices: all that will be measured, in the same order on every rank.
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
        """Measure the exponents of the matrices of these rounds. Collective.

        Args:
            rounds: indices of matrices; rank r measures the r-th of each round.
            basis: exponent that is measured.

        Returns:
            The exponents of all ranks by index; None where a matrix has none.
        """
        mine: dict[int, float | None] = {}
        waiting: dict[int, torch.Tensor] = {}
        failure: Exception | None = None
        for members, cuts in zip(rounds, self.cuts(rounds), strict=True):
            if failure is not None:
                continue  # the others still need this rank's shards
            waiting |= cuts
            # A gathered tensor is a copy: it is measured and freed before the next. Views can wait for one batch.
            if any(is_sharded(self._matrices[i].parameter) for i in members):
                mine, failure = _flush(waiting, basis, mine)
        if failure is None:
            mine, failure = _flush(waiting, basis, mine)
        return self.shared(rounds, mine, failure)

    def cuts(self, rounds: Sequence[Sequence[int]]) -> Iterator[dict[int, torch.Tensor]]:
        """Cut this rank's matrices of each round from the present weights. Collective.

        Args:
            rounds: indices of matrices; rank r gets the r-th of each round.

        Yields:
            For each round the matrices of this rank, by index.
        """
        needed: dict[nn.Parameter, set[int]] = {}
        for members in rounds:
            for rank, index in enumerate(members):
                needed.setdefault(self._matrices[index].parameter, set()).add(self._global(rank))
        parameter, whole = None, None
        for members in rounds:
            own: dict[int, torch.Tensor] = {}
            for rank, index in enumerate(members):
                matrix = self._matrices[index]
                if matrix.parameter is not parameter:
                    parameter, whole = matrix.parameter, gather(matrix.parameter, needed[matrix.parameter])
                if rank == self._rank and whole is not None:
                    own[index] = matrix.cut(whole)
            yield own

    def shared(
        self, rounds: Sequence[Sequence[int]], mine: dict[int, float | None], failure: Exception | None = None
    ) -> dict[int, float | None]:
        """Share the exponents that each rank measured. Collective.

        It is one sum in float64, to which the other ranks add exact zeros. Infinity stands for None.

        Args:
            rounds: indices of matrices that were measured.
            mine: exponents that this rank measured, by index.
            failure: what kept this rank from measuring; all raise then.

        Returns:
            The exponents of all ranks by index, in ascending order.

        Raises:
            ComputationError: another rank failed; a failure of this one is raised as it is.
        """
        order = sorted(index for members in rounds for index in members)
        if self.world > 1:
            values = [(math.inf if mine[i] is None else mine[i]) if i in mine else 0.0 for i in order]
            flags = [float(failure is not None and rank == self._rank) for rank in range(self.world)]
            vector = torch.tensor(cast("list[float]", values) + flags, dtype=torch.float64, device=self._device)
            dist.all_reduce(vector, group=self._group)
            total = vector.tolist()
            failed = total[len(order) :]
            if failure is None and any(failed):
                raise ComputationError(
                    f"rank {failed.index(1.0)} could not measure its matrices, so no rank has new ratios: the error of "
                    "that rank says why"
                )
            mine = {
                i: None if math.isinf(value) else value for i, value in zip(order, total[: len(order)], strict=True)
            }
        if failure is not None:
            raise failure
        return {i: mine[i] for i in order}

    def _global(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _check_alike(self) -> None:
        names = repr([(m.key, tuple(m.parameter.shape)) for m in self._matrices])
        code = zlib.crc32(names.encode())
        extremes = torch.tensor([code, -code], dtype=torch.int64, device=self._device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=self._group)
        if extremes.tolist() != [code, -code]:
            raise UsageError(
                "the ranks hold different modules (pipeline or expert parallelism), and a ratio needs the exponents of "
                "all: fix the decays when the optimizer is built, with plan = specdiag.recommend(checkpoint, "
                "weight_decay=...) and plan.param_groups(model, lr=...); for one group of replicas pass process_group"
            )


def _flush(
    waiting: dict[int, torch.Tensor], basis: Basis, mine: dict[int, float | None]
) -> tuple[dict[int, float | None], Exception | None]:
    """Add the exponents of what waits to those measured before; return them with what went wrong."""
    try:
        mine = mine | dict(zip(waiting, exponents(list(waiting.values()), basis), strict=True))
    except Exception as error:  # noqa: BLE001 - raised once the other ranks know
        return mine, error
    waiting.clear()
    return mine, None
