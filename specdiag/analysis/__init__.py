"""From a source to its report: what is opened, selected, measured, kept and summarised."""

from specdiag.analysis.source import open_source

__all__ = ["open_source"]
