"""Reasons why there is no model to compare with."""

from __future__ import annotations

OURS = (ImportError, MemoryError, RecursionError, NotImplementedError, OSError)
"""Failures of this machine, and of building without values: they say nothing of a configuration."""


class NoModelError(Exception):
    """There is no model to compare with; the message says why."""


class RefusedError(NoModelError):
    """Transformers makes no model of this configuration."""


def version() -> str:
    """Read the version of transformers."""
    import transformers

    return transformers.__version__


def in_a_line(error: BaseException) -> str:
    """Write an error in a line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def is_newer(config: dict[str, object]) -> bool:
    """Tell whether a later version of transformers wrote a configuration."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(str(config.get("transformers_version", "0"))) > Version(version())
    except InvalidVersion:
        return False
