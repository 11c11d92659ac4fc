"""Training with a decay rule. Needs `pip install transformers accelerate`, or `lightning` for its callback."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdiag.train.callbacks.lightning import LightningAlphaDecayCallback, LightningAlphaLRCallback
    from specdiag.train.callbacks.live_rules import AlphaDecayCallback, AlphaLRCallback
    from specdiag.train.callbacks.norms import NormWatchCallback
    from specdiag.train.callbacks.plan import DecayPlanCallback

_HOMES = {
    "AlphaDecayCallback": "callbacks.live_rules",
    "AlphaLRCallback": "callbacks.live_rules",
    "DecayPlanCallback": "callbacks.plan",
    "LightningAlphaDecayCallback": "callbacks.lightning",
    "LightningAlphaLRCallback": "callbacks.lightning",
    "NormWatchCallback": "callbacks.norms",
}

__all__ = [
    "AlphaDecayCallback",
    "AlphaLRCallback",
    "DecayPlanCallback",
    "LightningAlphaDecayCallback",
    "LightningAlphaLRCallback",
    "NormWatchCallback",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'specdiag.train' has no attribute '{name}'")
    return getattr(importlib.import_module(f"specdiag.train.{_HOMES[name]}"), name)
