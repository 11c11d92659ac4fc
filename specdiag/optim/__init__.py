"""Weight decay that changes while a model trains, on any torch optimizer. Needs torch and no trainer."""

from __future__ import annotations

from specdiag.optim.alpha_decay import AlphaDecay as AlphaDecay
from specdiag.optim.corrected_decay import CorrectedDecay as CorrectedDecay
from specdiag.optim.group_schedule import GroupSchedule as GroupSchedule
from specdiag.optim.scion import Scion as Scion

__all__ = ["AlphaDecay", "CorrectedDecay", "GroupSchedule", "Scion"]
