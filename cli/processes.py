"""The commands that several processes of torchrun may share: one of them speaks and saves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import output

if TYPE_CHECKING:
    from specdiag.analysis.processes import Ranks


def join() -> Ranks | None:
    """The processes that share this command; None where it runs alone. Of several all but the first fall silent."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from specdiag.analysis.processes import Ranks

    ranks = Ranks.of_torchrun()
    if ranks is not None and ranks.rank > 0:
        output.fall_silent(ranks.rank)
    return ranks
