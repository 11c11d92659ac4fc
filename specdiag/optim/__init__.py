"""Weight decay that changes while a model trains, on any torch optimizer. Needs torch and no trainer."""

from __future__ import annotations

from specdiag.optim.layout import layout as layout
from specdiag.optim.norms.norm_watch import NormWatch as NormWatch
from specdiag.optim.optimizers.ada_decay import AdaDecay as AdaDecay
from specdiag.optim.optimizers.awd import AWD as AWD
from specdiag.optim.optimizers.combined import Combined as Combined
from specdiag.optim.optimizers.renormalized_adamw import RenormalizedAdamW as RenormalizedAdamW
from specdiag.optim.optimizers.scion import Scion as Scion
from specdiag.optim.optimizers.scion_presets import scion_groups as scion_groups
from specdiag.optim.registry import METHODS as METHODS
from specdiag.optim.registry import optimizers as optimizers
from specdiag.optim.rules.alpha_decay import AlphaDecay as AlphaDecay
from specdiag.optim.rules.alpha_lr import AlphaLR as AlphaLR
from specdiag.optim.rules.corrected_decay import CorrectedDecay as CorrectedDecay
from specdiag.optim.rules.gradient_ratio import GradientRatioDecay as GradientRatioDecay
from specdiag.optim.rules.group_schedule import GroupSchedule as GroupSchedule
from specdiag.optim.rules.module_ada_decay import ModuleAdaDecay as ModuleAdaDecay
from specdiag.optim.rules.weightwise import WeightwiseDecay as WeightwiseDecay

__all__ = [
    "AWD",
    "METHODS",
    "AdaDecay",
    "AlphaDecay",
    "AlphaLR",
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
