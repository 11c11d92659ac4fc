"""Partial reports of an interrupted analysis: where they lie, and what becomes of them."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.text.counts import counted

from . import output

if TYPE_CHECKING:
    from specdiag.report import SpectralReport

_ENDING = ".incomplete.specdiag.json"


def place(out: Path, rank: int = 0) -> Path:
    """Where a partial report is saved beside a report that is there already, or that of another process."""
    return out.with_name(_stem(out) + (f".process{rank}" if rank else "") + _ENDING)


def find(out: Path) -> dict[Path, SpectralReport]:
    """The partial reports of the analysis whose report `out` will be. Says what it found."""
    from specdiag.report import is_report, load_report

    of_others = sorted(out.parent.glob(f"{glob.escape(_stem(out))}.process*{_ENDING}"))
    reports = {path: load_report(path) for path in (out, place(out), *of_others) if is_report(path)}
    found = {path: report for path, report in reports.items() if not report.complete}
    for path, report in found.items():
        output.talk(f"going on from {path}: {counted(len(report), 'matrix', 'matrices')}", "dim")
    if not found:
        output.talk(f"no partial report beside {out}: starting from the beginning", "yellow")
    return found


def clear(paths: Iterable[Path], out: Path) -> None:
    """Remove partial reports, now that `out` holds all that they do."""
    for path in paths:
        if path != out:
            path.unlink(missing_ok=True)
            path.with_suffix(".spectra.safetensors").unlink(missing_ok=True)


def _stem(out: Path) -> str:
    return out.name.removesuffix(".json").removesuffix(".specdiag")
