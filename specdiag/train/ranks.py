"""The processes that train together, as torchrun or accelerate started them."""

from __future__ import annotations

from accelerate import PartialState


def count_ranks() -> int:
    """How many processes train together; joins them where they have not met yet."""
    return PartialState().num_processes


def wait_for_all() -> None:
    """Go on when every process has come here."""
    PartialState().wait_for_everyone()
