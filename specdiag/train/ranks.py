"""The processes that train together, as torchrun or accelerate started them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from specdiag.system.folder_lock import FolderLock


def count_ranks() -> int:
    """Return the number of processes that train together. Joins them if they are not joined yet."""
    return _state().num_processes


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


def any_rank(flag: bool) -> bool:
    """Return True if `flag` is True in any process. Every process must call this."""
    state = _state()
    if state.num_processes == 1:
        return flag
    largest = torch.tensor(int(flag), device=state.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return bool(largest.item())


def _state() -> PartialState:
    """Return accelerate's state of this process. It needs `cpu=True` without an accelerator, or ranks do not meet."""
    return PartialState(cpu=not torch.accelerator.is_available())
