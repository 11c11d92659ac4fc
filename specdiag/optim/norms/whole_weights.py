"""The watched Parameters, whole at the rank that measures them: shards (FSDP2, tensor parallelism) are put together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from specdiag.analysis.processes import Ranks, agreement, refuse_failed, said
from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.matrices import LiveMatrix
from specdiag.optim.norms.power_iteration import PowerIteration
from specdiag.system.gathering import gather, is_sharded
from specdiag.trajectories.metric_log import LogEntry


@dataclass(slots=True)
class Part:
    """The numbers of a logged step that one rank measured.

    Attributes:
        entries: of each matrix, in one order on all ranks; empty where another rank measures it.
        heads: of each attention, likewise.
        rows: square norms of the rows of each down projection; None where another rank measures it.
        vectors: of the spectral norms, by key.
        failure: sentence about what kept this rank from measuring.
    """

    entries: list[list[LogEntry]] = field(default_factory=list[list[LogEntry]])
    heads: list[list[LogEntry]] = field(default_factory=list[list[LogEntry]])
    rows: list[torch.Tensor | None] = field(default_factory=list[torch.Tensor | None])
    vectors: Table = field(default_factory=dict)
    failure: str | None = None


class WholeWeights:
    """Where each watched Parameter is measured, and its values there.

    Whole Parameters are measured at rank 0 alone. Where some are shards, each has an owner, so that all ranks get about
    as many values, and every rank makes each call.

    Attributes:
        takes_part: False on ranks that neither measure nor get results.
        is_writer: True on the rank that writes files.
        error: the first failure of this rank since the last `share`.
    """

    def __init__(self, matrices: Sequence[LiveMatrix], together: Iterable[Collection[nn.Parameter]]) -> None:
        """Choose the owners. Collective where Parameters are shards.

        Args:
            matrices: that are watched, the same on every rank.
            together: Parameters that one rank must have.

        Raises:
            UsageError: the ranks hold different matrices.
        """
        joined = dist.is_available() and dist.is_initialized()
        self._rank = dist.get_rank() if joined else 0
        self._ranks = Ranks.of_training() if any(is_sharded(m.parameter) for m in matrices) else None
        self.is_writer = self._rank == 0
        self.takes_part = self.is_writer or self._ranks is not None
        self.error: Exception | None = None
        self._keys = {m.key: m.parameter for m in matrices}
        self._owners = dict.fromkeys((m.parameter for m in matrices), 0)
        if self._ranks is None:
            return
        names = self._ranks.exchange([(m.key, tuple(m.parameter.shape)) for m in matrices])
        if any(each != names[0] for each in names):
            raise UsageError(
                "the ranks hold different matrices (pipeline or expert parallelism), and a norm watch needs the same "
                "on all: choose those that all hold with include=, exclude= or roles="
            )
        loads = [0] * self._ranks.size
        for group in sorted(_groups(self._owners, together), key=lambda group: -sum(p.numel() for p in group)):
            owner = loads.index(min(loads))
            loads[owner] += sum(p.numel() for p in group)
            self._owners |= dict.fromkeys(group, owner)

    def agreement(self) -> AbstractContextManager[None]:
        """Let all ranks raise where one fails in this block."""
        return agreement(self._ranks)

    def attempt(self) -> AbstractContextManager[object]:
        """Keep a failure of this rank until `share`, where the other ranks would wait for what it has to send."""
        return nullcontext() if self._ranks is None else _Attempt(self)

    def is_here(self, parameter: nn.Parameter) -> bool:
        """Tell whether this rank measures a Parameter."""
        return self._owners[parameter] == self._rank

    def whole(self, parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor | None:
        """Put a tensor together where its Parameter is measured. Collective where it is a shard.

        Args:
            parameter: that is watched.
            tensor: of its shape: its values, or its gradient.

        Returns:
            The tensor; where it was whole this is no copy. None on other ranks.
        """
        found = gather(tensor, (self._owners[parameter],))
        return found if self.is_here(parameter) else None

    def copies(self) -> dict[nn.Parameter, torch.Tensor]:
        """Copy the Parameters that are measured here. Collective where they are shards."""
        found: dict[nn.Parameter, torch.Tensor] = {}
        for parameter in self._owners:
            whole = self.whole(parameter, parameter.detach())
            if whole is not None:
                found[parameter] = whole.clone() if _begins(whole) == _begins(parameter.detach()) else whole
        return found

    def everywhere(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Put tensors together at every rank. Collective where they are shards.

        Args:
            tensors: small ones, by name.
        """
        return {name: tensor.full_tensor() if is_sharded(tensor) else tensor for name, tensor in tensors.items()}  # pyright: ignore

    def share(self, part: Part, powers: PowerIteration) -> Part:
        """Put together what all ranks measured. Collective where Parameters are shards.

        Args:
            part: of this rank.
            powers: of the spectral norms; gets the vectors of all ranks.

        Raises:
            RankFailed: another rank could not measure its part; a failure of this one is raised as it is.
        """
        error, self.error = self.error, None
        if self._ranks is None:
            return part
        part.rows = [None if row is None else row.cpu() for row in part.rows]
        vectors = powers.state_dict()
        part.vectors = {key: vectors[key] for key, p in self._keys.items() if key in vectors and self.is_here(p)}
        part.failure = None if error is None else said(error)
        parts = self._ranks.exchange(part)
        if error is not None:
            raise error
        refuse_failed([each.failure for each in parts])
        powers.load_state_dict({key: vector for each in parts for key, vector in each.vectors.items()})
        entries, heads = (
            [next(filter(None, same), []) for same in zip(*lists, strict=True)]
            for lists in ([each.entries for each in parts], [each.heads for each in parts])
        )
        rows = [next(r for r in same if r is not None) for same in zip(*(each.rows for each in parts), strict=True)]
        return Part(entries, heads, rows)


class _Attempt(AbstractContextManager[None]):
    def __init__(self, weights: WholeWeights) -> None:
        self._weights = weights

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._weights.error = self._weights.error or error
            return True
        return False


def _begins(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore
    return local.untyped_storage().data_ptr()  # pyright: ignore


def _groups(
    parameters: Iterable[nn.Parameter], together: Iterable[Collection[nn.Parameter]]
) -> Iterator[list[nn.Parameter]]:
    """Yield each Parameter with all that it must be together with, directly or by way of others."""
    groups = {p: [p] for p in parameters}
    for collection in together:
        first, *others = collection
        for other in others:
            if groups[other] is not groups[first]:
                groups[first] += groups[other]
                for p in groups[other]:
                    groups[p] = groups[first]
    seen: set[int] = set()
    for group in groups.values():
        if id(group) not in seen:
            seen.add(id(group))
            yield group
