"""Batches of a run that continues: as many processes as before see the same ones."""

from __future__ import annotations

from specdiag.errors import UsageError
from specdiag.text.counts import counted
from specdiag.train.ranks import count_ranks
from specdiag.train.runs.request import Request


def check_ranks(before: int, request: Request, notes: list[str]) -> None:
    """Check that as many processes train as before.

    Args:
        before: number of processes that trained.
        request: options of the run, whose `allow_data_shift` permits another number.
        notes: list to which a sentence about that is added.

    Raises:
        UsageError: the number is another.
    """
    now = count_ranks()
    if before == now:
        return
    earlier = counted(before, "process", "processes")
    if not request.allow_data_shift:
        raise UsageError(
            f"the run was trained by {earlier} and this is {now}, which see other batches: "
            "allow_data_shift=True takes that"
        )
    notes.append(
        f"The run was trained by {earlier} and this is {now}: at the same per_device_train_batch_size a "
        f"step has {now}/{before} of their blocks."
    )
