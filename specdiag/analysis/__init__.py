"""From a source to its report: what is opened, selected, measured, kept and summarised."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdiag.analysis.source import open_source

__all__ = ["open_source"]


def __getattr__(name: str) -> object:
    """Import `open_source` when it is asked for: a saved report needs neither numpy nor a reader."""
    if name == "open_source":
        from specdiag.analysis.source import open_source

        return open_source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
