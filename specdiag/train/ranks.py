"""The processes that train together, as torchrun or accelerate started them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState

from specdiag.system.folder_lock import FolderLock


def count_ranks() -> int:
    """How many processes train together; joins them where they have not met yet."""
    return _state().num_processes


def lock_run(run: Path) -> FolderLock | None:
    """The lock of a run's folder, which the first of the processes takes for all; None on the others.

    Raises:
        UsageError: another process writes there.
    """
    return FolderLock(run) if _state().is_main_process else None


def wait_for_all() -> None:
    """Go on when every process has come here."""
    _state().wait_for_everyone()


def one_rank_first() -> AbstractContextManager[None]:
    """Run the block in the first process, then in the others."""
    return _state().main_process_first()


def any_rank(flag: bool) -> bool:
    """Return True if the flag is set in any process. Collective."""
    state = _state()
    if state.num_processes == 1:
        return flag
    found = torch.tensor(int(flag), device=state.device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def _state() -> PartialState:
    """accelerate makes one for the process; without an accelerator it has to be told so, or ranks do not meet."""
    return PartialState(cpu=not torch.accelerator.is_available())
