"""The package that parquet needs, which is not always installed."""

from __future__ import annotations

from importlib.util import find_spec

from specdiag.errors import MissingExtraError


def require_pyarrow() -> None:
    """Check that parquet can be written and read.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise MissingExtraError("parquet needs pyarrow: pip install 'spectral-diagnostics[parquet]'")
