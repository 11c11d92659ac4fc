"""Errors that specdiag raises on purpose.

Every message says what failed, the offending value, and what to do next. The command line maps each class to one
exit code; a library user catches `SpecdiagError` or the leaf.
"""

from __future__ import annotations


class SpecdiagError(Exception):
    """Base of every error that specdiag raises on purpose."""


class UsageError(SpecdiagError, ValueError):
    """The request itself cannot be served: a bad option, a bad configuration file, an unwritable output."""


class MissingExtraError(UsageError):
    """The request needs an optional dependency that is not installed."""


class SourceError(SpecdiagError):
    """The source was not found, cannot be reached, is not a checkpoint, is damaged, or holds nothing to analyse."""


class ComputationError(SpecdiagError):
    """The numbers could not be computed, or not all of them."""
