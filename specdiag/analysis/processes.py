"""Processes that share one analysis, as torchrun started them: who measures what, and how each learns what all found.

Every process makes the same calls in the same order. Processes wait for one another, hearing signals, before they enter
a collective: none is left waiting inside one for a process that may never come.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

from msgspec.structs import replace

from specdiag.errors import ComputationError
from specdiag.records import ModuleRecord, Settings, Source
from specdiag.spectra.measure import Eigenvalues

T = TypeVar("T")
Rows = dict[str, tuple[ModuleRecord, Eigenvalues]]
"""Row and eigenvalues of each matrix, by key."""

_LONGEST_WAIT = timedelta(days=1)
"""How much sooner one process may finish than another; torchrun reports one that has died much earlier."""
_POLL_SECONDS = 0.02
_STOP_SECONDS = 5.0
"""Seconds in which torchrun stops the others when one has died: to be stopped once is simpler than twice."""


class RankLost(ComputationError):
    """Another process has ended, or cannot be reached."""


class RankFailed(ComputationError):
    """Another process could not do its part."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank: its number on this machine.
        local_size: how many are on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def of_torchrun(cls) -> Ranks | None:
        """Join the processes that torchrun started; None where there is one alone. Returns when all have come.

        Raises:
            RankLost: some did not come.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
        if any(name not in os.environ for name in names) or int(os.environ["WORLD_SIZE"]) == 1:
            return None
        import torch.distributed as dist

        try:
            dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise RankLost(f"the processes of torchrun did not meet: {reason}") from error
        atexit.register(dist.destroy_process_group)  # its threads would abort the interpreter's end
        return cls(*(int(os.environ[name]) for name in names[:4]))

    @classmethod
    def of_training(cls) -> Ranks:
        """Take the processes of torch.distributed, in which a model is trained."""
        import torch.distributed as dist

        rank, size = dist.get_rank(), dist.get_world_size()
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", rank % local_size)), local_size)

    def own_part(self, work: Sequence[T], costs: Sequence[float]) -> list[T]:
        """Choose the work of this process: the longest goes first, each to the process that has least to do yet.

        Args:
            work: everything, in the same order everywhere.
            costs: of each item, in any unit.

        Returns:
            The items of this process, in their order.
        """
        loads = [0.0] * self.size
        taken: list[int] = []
        for i in sorted(range(len(work)), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            loads[least] += costs[i]
            if least == self.rank:
                taken.append(i)
        return [work[i] for i in sorted(taken)]

    def device(self, device: str) -> str:
        """Choose the accelerator of this process, where the work goes to several."""
        if not device.startswith("cuda"):
            return device
        import torch

        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def exchange(self, mine: T) -> list[T]:
        """Gather a value from every process. All call it; a signal interrupts the wait for the others.

        Args:
            mine: the value of this process.

        Returns:
            The values by rank.

        Raises:
            RankLost: another process has ended.
        """
        import torch.distributed as dist

        found: list[T | None] = [None] * self.size
        try:
            all_here = cast("dist.Work", dist.barrier(async_op=True))
            while not all_here.is_completed():
                time.sleep(_POLL_SECONDS)
            all_here.wait()
            dist.all_gather_object(found, mine)
        except RuntimeError as error:
            time.sleep(_STOP_SECONDS)
            raise RankLost("another process has ended") from error
        return cast("list[T]", found)

    def wait_for_all(self) -> None:
        """Go on when all have come here: where one ends with an exit code, torchrun stops the others.

        Raises:
            RankLost: another process has ended.
        """
        self.exchange(None)


@contextmanager
def agreement(ranks: Ranks | None) -> Generator[None]:
    """Let every process raise where one fails in this block, before any of them waits for what will not come.

    All enter it. Another meeting is held in a block only before anything that may fail at one process alone, or where
    all fail together.

    Args:
        ranks: the processes; None for one alone.

    Raises:
        RankFailed: another process failed here; a failure of this one is raised as it is.
        RankLost: another process has ended.
    """
    try:
        yield
    except Exception as error:
        if ranks is not None:
            ranks.exchange(said(error))
        raise
    if ranks is not None:
        refuse_failed(ranks.exchange(None))


def refuse_failed(failures: Sequence[str | None]) -> None:
    """Raise where a process failed.

    Args:
        failures: sentence of each process by rank; None where nothing failed.

    Raises:
        RankFailed: naming the first process that failed.
    """
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise RankFailed(f"process {rank} failed: {failure}")


def said(error: BaseException) -> str:
    """Return the sentence of a failure, its type where it has none."""
    return str(error) or type(error).__name__


class PartialResult(NamedTuple):
    """The result of one process, or of all together.

    Attributes:
        work_digest: hash of what all processes together were to measure, from `digest_of`.
        finished: rows and eigenvalues by key.
        n_cached: matrices whose numbers an earlier analysis had kept.
        device_difference: largest relative difference of an upper eigenvalue between accelerator and CPU.
        failure: sentence about what ended the work of this process early; None where nothing did.
    """

    work_digest: str
    finished: Rows
    n_cached: int
    device_difference: float | None
    failure: str | None = None

    @staticmethod
    def digest_of(source: Source, settings: Settings, left: Iterable[str]) -> str:
        """Hash what all processes together were to measure.

        Args:
            source: the checkpoint.
            settings: the settings; which of several accelerators makes no difference.
            left: keys of the matrices that remain to be measured.
        """
        settings = replace(settings, device=settings.device.partition(":")[0])
        return hashlib.sha256(repr((source, settings, sorted(left))).encode()).hexdigest()

    def with_others(self, ranks: Ranks) -> PartialResult:
        """Put the results of all processes together. All call it.

        Args:
            ranks: the processes.

        Raises:
            RankLost: another process has ended.
            RankFailed: another process, or this one, could not do its part.
            ComputationError: they were not measuring the same.
        """
        results = ranks.exchange(self)
        refuse_failed([result.failure for result in results])
        if len({result.work_digest for result in results}) > 1:
            raise ComputationError(
                "the processes do not see the same checkpoint or partial reports: give all of them one shared folder"
            )
        differences = [r.device_difference for r in results if r.device_difference is not None]
        return PartialResult(
            self.work_digest,
            {name: row for result in results for name, row in result.finished.items()},
            sum(result.n_cached for result in results),
            max(differences, default=None),
        )
