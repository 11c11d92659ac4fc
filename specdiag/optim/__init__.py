"""Weight decay that changes while a model trains, on any torch optimizer. Needs torch and no trainer."""

from __future__ import annotations

from specdiag.optim.ada_decay import AdaDecay as AdaDecay
from specdiag.optim.alpha_decay import AlphaDecay as AlphaDecay
from specdiag.optim.awd import AWD as AWD
from specdiag.optim.cautious import CautiousAdamW as CautiousAdamW
from specdiag.optim.combined import Combined as Combined
from specdiag.optim.constrained import AdamCPR as AdamCPR
from specdiag.optim.corrected_decay import CorrectedDecay as CorrectedDecay
from specdiag.optim.gradient_ratio import GradientRatioDecay as GradientRatioDecay
from specdiag.optim.group_schedule import GroupSchedule as GroupSchedule
from specdiag.optim.layout import layout as layout
from specdiag.optim.module_ada_decay import ModuleAdaDecay as ModuleAdaDecay
from specdiag.optim.norm_watch import NormWatch as NormWatch
from specdiag.optim.presets import scion_groups as scion_groups
from specdiag.optim.registry import METHODS as METHODS
from specdiag.optim.registry import optimizers as optimizers
from specdiag.optim.renormalized import RenormalizedAdamW as RenormalizedAdamW
from specdiag.optim.scion import Scion as Scion
from specdiag.optim.stable import AdamS as AdamS
from specdiag.optim.weightwise import WeightwiseDecay as WeightwiseDecay

__all__ = [
    "AWD",
    "METHODS",
    "AdaDecay",
    "AdamCPR",
    "AdamS",
    "AlphaDecay",
    "CautiousAdamW",
    "Combined",
    "CorrectedDecay",
    "GradientRatioDecay",
    "GroupSchedule",
    "ModuleAdaDecay",
    "NormWatch",
    "RenormalizedAdamW",
    "Scion",
    "WeightwiseDecay",
    "layout",
    "optimizers",
    "scion_groups",
]
