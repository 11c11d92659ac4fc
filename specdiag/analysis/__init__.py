"""Analysis of a source: opened, selected, measured, kept and summarised."""

from specdiag.analysis.source import open_source

__all__ = ["open_source"]
