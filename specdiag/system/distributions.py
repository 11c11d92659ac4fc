"""Versions of installed packages. Ours is called `spectral-diagnostics` on an index, where `specdiag` is another's."""

from importlib import metadata

DISTRIBUTION = "spectral-diagnostics"


def version(package: str) -> str:
    """Find the version of an installed package.

    Args:
        package: its name on an index; `specdiag` for this one.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    return metadata.version(DISTRIBUTION if package == "specdiag" else package)
