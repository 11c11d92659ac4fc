"""Reports made by hand, and reports on disk that were changed by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdiag.records import ModuleRecord, Provenance, Settings, Source, Summary
from specdiag.report import SpectralReport


def seal(path: Path, spectra: Path) -> None:
    """Write the digest of this spectra file into a report."""
    content = json.loads(path.read_text())
    content["provenance"]["spectra_digest"] = hashlib.sha256(spectra.read_bytes()).hexdigest()
    path.write_text(json.dumps(content, separators=(",", ":")))


def made(
    records: Sequence[ModuleRecord], *, complete: bool = True, files: tuple[str, ...] = (), **settings: Any
) -> SpectralReport:
    """A report of these records alone."""
    n = len(records)
    return SpectralReport(
        source=Source(kind="file", location="made", files=files), settings=Settings(**settings), records=tuple(records),
        skipped=(), complete=complete,
        summary=Summary(n_tensors=n, n_parameters=n, n_matrices=n, analysed_parameters=n, skipped={}, statuses={},
                        roles=(), contrasts=()),
        provenance=Provenance(created="", versions={}, platform="", device="cpu", device_name="", jobs=1, seconds=0.0,
                              peak_bytes=0),
    )  # fmt: skip
