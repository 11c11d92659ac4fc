"""The processes that train together, as torchrun or accelerate started them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from specdiag.analysis.processes import Ranks, agreement
from specdiag.errors import UsageError
from specdiag.system.folder_lock import FolderLock


def count_ranks() -> int:
    """Return the number of processes that train together. Joins them if they are not joined yet."""
    return _state().num_processes


def refuse_ranks(what: str) -> None:
    """Refuse what one process does.

    Args:
        what: "a dry run", for the message.

    Raises:
        UsageError: more than one process trains.
    """
    if count_ranks() > 1:
        raise UsageError(f"{what} is for one process: start it without torchrun or accelerate launch")


def own_rank() -> int:
    """Return the number of this process, from 0."""
    return _state().process_index


def lock_run(run: Path) -> FolderLock | None:
    """Lock a run's folder in the first process, for all processes.

    Args:
        run: folder of the run.

    Returns:
        The lock; None on all processes but the first.

    Raises:
        UsageError: another program writes to the folder.
    """
    return FolderLock(run) if _state().is_main_process else None


def wait_for_all() -> None:
    """Wait until every process has called this."""
    _state().wait_for_everyone()


def one_rank_first() -> AbstractContextManager[None]:
    """Run the block in the first process, then in the others."""
    return _state().main_process_first()


def together() -> AbstractContextManager[None]:
    """Let every process raise where one fails in the block, as `agreement` does."""
    return agreement(Ranks.of_training() if _state().num_processes > 1 else None)


def largest(numbers: Sequence[int]) -> list[int]:
    """Return the largest value of each number in any process. Every process must call this."""
    state = _state()
    if state.num_processes == 1:
        return list(numbers)
    found = torch.tensor(list(numbers), device=state.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def any_rank(flag: bool) -> bool:
    """Return True if `flag` is True in any process. Every process must call this."""
    return bool(largest([int(flag)])[0])


def _state() -> PartialState:
    """Return accelerate's state of this process. It needs `cpu=True` without an accelerator, or ranks do not meet."""
    return PartialState(cpu=not torch.accelerator.is_available())
