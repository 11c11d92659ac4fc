"""Training with a decay rule. Needs `pip install 'specdiag[train]'`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdiag.train.callback import AlphaDecayCallback

__all__ = ["AlphaDecayCallback"]


def __getattr__(name: str) -> Any:
    if name != "AlphaDecayCallback":
        raise AttributeError(f"module 'specdiag.train' has no attribute '{name}'")
    from specdiag.train.callback import AlphaDecayCallback

    return AlphaDecayCallback
