"""specdiag with its defaults on the block matrices; what a whole process of it costs is measured on its command."""

from __future__ import annotations

import sys
from typing import Any, Literal

import specdiag.checkpoint.reader
import specdiag.spectra.measure  # noqa: F401 - imports are not part of what is timed
from specdiag import analyze

BLOCKS = "*layer*"
"""Names of transformer-block matrices in every checkpoint measured here."""


def analyse(
    folder: str, *, dtype: Literal["auto", "float32", "float64"] = "auto", include: tuple[str, ...] = (BLOCKS,)
) -> dict[str, Any]:
    """Both exponents of all block matrices by name. Nothing is kept from an earlier run in this process."""
    forget()
    report = analyze(folder, include=include, dtype=dtype)
    return {"alpha": {r.key: r.alpha for r in report}, "pl_alpha": {r.key: r.pl_alpha for r in report}}


def forget() -> None:
    """Empty the library's caches (nulls by shape), which only a first run pays for."""
    for name, module in list(sys.modules.items()):
        if name.startswith("specdiag"):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
