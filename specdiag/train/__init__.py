"""Training with a decay rule. Needs `pip install transformers accelerate`, or `lightning` for its callback."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdiag.train.callback import AlphaDecayCallback
    from specdiag.train.lightning_callback import LightningAlphaDecayCallback
    from specdiag.train.norm_callback import NormWatchCallback
    from specdiag.train.plan_callback import DecayPlanCallback

_HOMES = {
    "AlphaDecayCallback": "callback",
    "DecayPlanCallback": "plan_callback",
    "LightningAlphaDecayCallback": "lightning_callback",
    "NormWatchCallback": "norm_callback",
}

__all__ = ["AlphaDecayCallback", "DecayPlanCallback", "LightningAlphaDecayCallback", "NormWatchCallback"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'specdiag.train' has no attribute '{name}'")
    return getattr(importlib.import_module(f"specdiag.train.{_HOMES[name]}"), name)
