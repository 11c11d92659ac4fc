"""An interrupted analysis goes on: rows of its partial reports, where these are of the same weights and settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec.structs import asdict, replace

from specdiag.checkpoint.fingerprint import fingerprint
from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.errors import UsageError
from specdiag.records import ModuleRecord, Settings, Source
from specdiag.report import SpectralReport
from specdiag.spectra.identity import identity
from specdiag.spectra.measure import Eigenvalues
from specdiag.spectra.solvers import kernels
from specdiag.system.distributions import version

_REMEASURED = ("failed", "nonfinite")
"""Statuses that are measured again: a tensor may be readable now, and without a spectrum it costs only reading."""


def finished_rows(
    partial: Sequence[SpectralReport], source: Source, settings: Settings, selected: Iterable[WeightMatrix]
) -> dict[str, tuple[ModuleRecord, Eigenvalues]]:
    """Collect rows that need not be computed again, by key.

    Args:
        partial: reports of one analysis that was interrupted.
        source: what is analysed now.
        settings: how.
        selected: which matrices.

    Raises:
        UsageError: a report is of other weights or settings, or was saved without eigenvalues.
    """
    matrices = {m.key: m for m in selected}
    found: dict[str, tuple[ModuleRecord, Eigenvalues]] = {}
    for report in partial:
        if difference := _difference(report, source, settings):
            raise UsageError(f"the partial report of {report.source} {difference}: leave out partial_reports=")
        loaded = report.in_memory()
        for row in (*loaded.records, *loaded.function):
            matrix = matrices.get(row.key)
            if matrix is None or row.status in _REMEASURED or (row.rows, row.cols) != matrix.shape:
                continue
            randomized = None
            if row.rand_spectral_norm is not None:
                randomized = loaded.eigenvalues(row.key, randomized=True)
            found[row.key] = (
                replace(row, **identity(matrix)),
                Eigenvalues(loaded.eigenvalues(row.key), randomized),
            )
    return found


def _difference(report: SpectralReport, source: Source, settings: Settings) -> str | None:
    """Say why the rows of a report are not those of this analysis; None where they are."""
    if source.kind == "memory":
        return "is of a model in memory, which may have changed since"
    before, now = _place(report.source), _place(source)
    if before != now:
        return f"is of {before}, and this is {now}"
    if report.provenance.fingerprint != fingerprint(source):
        return "is older than its files, which have changed since"
    old, new = asdict(report.settings), asdict(settings)
    for name, value in new.items():
        if name != "device" and old[name] != value:
            return f"was made with {name} = {old[name]!r}, and this is {value!r}"
    devices = [device.partition(":")[0] for device in (old["device"], new["device"])]
    if devices[0] != devices[1]:
        return f"was made on {devices[0]}, and this is {devices[1]}"
    there, here = report.provenance.kernels, kernels()
    if there != here:
        ours, theirs = (", ".join(sorted(set(a) - set(b))) or "others" for a, b in ((here, there), (there, here)))
        return f"was made with the BLAS kernels and processor '{theirs:.200}', and this has '{ours:.200}'"
    made_by, installed = report.provenance.versions.get("specdiag"), version("specdiag")
    if made_by != installed:
        return f"was made by specdiag {made_by}, and this is {installed}"
    return None if report.has_eigenvalues else "has no eigenvalues beside it"


def _place(source: Source) -> str:
    """Write where the weights are in one spelling."""
    local = source.kind in ("dir", "file")
    name = str(Path(source.location).resolve()) if local else f"{source.location}@{source.commit}"
    chosen = f" ({', '.join(source.files)}{'' if source.part is None else f', part {source.part}'})"
    return f"{name}{chosen}" + ("" if source.base is None else f" on {source.base}")
