"""The saved answer: `X.json`, and beside it `X.spectra.safetensors` with every eigenvalue.

There a spectrum has the name of its matrix, and that of its permuted entries `name[randomized]`.

Reading a report imports neither torch nor numpy. A report of a newer schema is named as such, not half understood.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace as replace_record

from specdiag.errors import SourceError, UsageError
from specdiag.files import json_decoder, read_start, shortened, write_atomically
from specdiag.records import ModuleRecord, Provenance, Record, Settings, Skipped, Source, Summary, key
from specdiag.storage.kinds import REPORT, kind_of_file, read_record
from specdiag.storage.plausibility import implausible_digest, implausible_rows, implausible_summary
from specdiag.storage.result import Result, cell
from specdiag.storage.spectra_file import SavedSpectra, is_there, settle, write_pending
from specdiag.text import checks
from specdiag.text.counts import counted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from specdiag.spectra.fit_test import FitComparison

COLUMNS: tuple[str, ...] = ModuleRecord.__struct_fields__
"""Column names of a record, the same in json, csv and parquet."""
_RANDOMIZED = "[randomized]"
_MEDIANS = ("family", "role", "n", "alpha", "alpha_null", "rho", "square_alpha", "square_alpha_null", "pl_alpha")


class _ReportFile(Record, frozen=True, kw_only=True):
    schema: int
    source: Source
    settings: Settings
    complete: bool
    records: tuple[ModuleRecord, ...]
    function: tuple[ModuleRecord, ...]
    skipped: tuple[Skipped, ...]
    summary: Summary
    provenance: Provenance


_decode_report = json_decoder(_ReportFile)


@dataclass(frozen=True, repr=False)
class SpectralReport(Result):
    """Result of `analyze`.

    Attributes:
        source: where the weights came from.
        settings: what was computed, and how.
        records: one row a weight matrix, in stored order.
        skipped: every stored tensor that is no row, with its reason.
        summary: roles, coverage, attention against MLP.
        provenance: versions, device, seconds, peak memory.
        function: with function=True, rows of what the weights compute: QK and OV of each head, DU of gated MLPs.
        complete: False after an interruption: some selected matrices are missing.
    """

    source: Source
    settings: Settings
    records: tuple[ModuleRecord, ...]
    skipped: tuple[Skipped, ...]
    summary: Summary
    provenance: Provenance
    function: tuple[ModuleRecord, ...] = ()
    complete: bool = True
    _spectra: Mapping[str, NDArray[np.float64]] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Describe the report in a line, and each role in one more."""
        lines = [super().__repr__()]
        for r in self.summary.roles:
            values = (f"{name} {cell(getattr(r, name))}" for name in ("alpha", "alpha_null", "square_alpha"))
            lines.append(f"  {r.family:9} {r.role:6} {r.n:5}  {'  '.join(values)}")
        return "\n".join(lines)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[ModuleRecord]:
        return iter(self.records)

    def __getitem__(self, name: str) -> ModuleRecord:
        """The record called `name`, or `name[part]`."""
        for record in (*self.records, *self.function):
            if record.key == name:
                return record
        raise KeyError(name)

    @property
    def has_eigenvalues(self) -> bool:
        """True where `eigenvalues` has an answer; False for a report that was saved without them."""
        return self._spectra is not None

    def eigenvalues(self, name: str, part: str | None = None, *, randomized: bool = False) -> NDArray[np.float64]:
        """The ESD of one matrix: lambda = sigma^2, ascending, shape [n].

        Args:
            name: the tensor's name, or `name[part]`.
            part: the part, where the name does not carry it.
            randomized: of the matrix with its entries permuted: what a record with `rand_spectral_norm` has.

        Raises:
            UsageError: if the report has no such matrix, was saved without eigenvalues, or did not permute its entries.
            SourceError: the file with the eigenvalues is damaged, or is another report's.
        """
        checks.text("name", name)
        checks.flag("randomized", randomized)
        wanted = key(name, None if part is None else checks.text("part", part))
        if self._spectra is None:
            raise UsageError(f"{self.source}: {self._without_spectra()}")
        values = self._spectra.get(spectrum_key(wanted, randomized=randomized))
        if values is None or not values.size:
            raise UsageError(self._missing(wanted, randomized=randomized))
        return values

    def alpha_at(self, name: str, part: str | None = None, *, aspect: float = 1.0) -> float:
        """Give the Hill exponent at tail fraction 1/2 that a matrix would have at another aspect ratio.

        The long side is cut by free compression (`spectra.compression`); at 1 the exponent is `square_alpha`.

        Args:
            name: the tensor's name, or `name[part]`.
            part: the part, where the name does not carry it.
            aspect: longer side over shorter one, from 1 to that of the matrix's living part.

        Raises:
            UsageError: if the matrix is narrower, has no square_alpha, pools slices whose spectra are not kept apart,
                or if the report has no such matrix or was saved without eigenvalues.
            SourceError: the file with the eigenvalues is damaged, or is another report's.

        Example:
            >>> report.alpha_at("model.layers.0.mlp.up_proj.weight", aspect=1) == report[
            ...     "model.layers.0.mlp.up_proj.weight"
            ... ].square_alpha
            True
        """
        from specdiag.spectra.square import NO_SQUARE, cut_alpha

        values = self.eigenvalues(name, part)
        aspect = checks.number("aspect", aspect, least=1)
        record = self[key(name, part)]
        if record.square_alpha is None:
            why = NO_SQUARE.get(record.square_status, f"its status is {record.status}")
            raise UsageError(f"{self.source}: '{record.key}' has no square_alpha: {why}")
        if record.n_slices > 1:
            raise UsageError(
                f"{self.source}: '{record.key}' pools {record.n_slices} slices, whose spectra are not saved apart: "
                "only its square_alpha is known"
            )
        n, m = sorted(record.living_shape)
        if round(aspect * n) > m:
            raise UsageError(
                f"aspect={aspect:g} is more than '{record.key}' has: its living part is {n} x {m}, {m / n:.4g}:1, and "
                "a longer side cannot be made from it"
            )
        return cut_alpha(values[None, len(values) - n :], m, aspect).alpha

    def compare_laws(self, name: str, part: str | None = None) -> FitComparison:
        """Fit to the tail of one matrix a power law, truncated or not, an exponential, a lognormal and a law of noise.

        The tail is that of `alpha`: its k points from xmin on.

        Args:
            name: the tensor's name, or `name[part]`.
            part: the part, where the name does not carry it.

        Raises:
            UsageError: if the matrix has no exponent, fewer than 50 eigenvalues in its tail, or the tail of windows, or
                if the report has no such matrix or was saved without eigenvalues.
            SourceError: the file with the eigenvalues is damaged, or is another report's.

        Example:
            >>> report = specdiag.analyze("org/name", tail_fraction=0.8)
            >>> found = report.compare_laws("model.layers.0.mlp.up_proj.weight")
            >>> found.best is None, found.candidates[0], found.compare("mp-bulk", "power-law").p < 0.05
            (True, 'mp-bulk', True)
        """
        from specdiag.spectra.fit_test import bulk_of, compare_laws, untested

        values = self.eigenvalues(name, part)
        record = self[key(name, part)]
        if reason := untested(record):
            raise UsageError(f"{self.source}: '{record.key}' has no fit test: {reason}")
        assert record.k is not None
        assert record.xmin is not None
        end = len(values) - (record.n_clipped or 0)
        return compare_laws(values[end - record.k : end], record.xmin, bulk_of(record))

    def in_memory(self) -> SpectralReport:
        """The same with its eigenvalues read: their file may go.

        Raises:
            SourceError: the file with the eigenvalues is damaged, or is another report's.
        """
        return self if self._spectra is None else replace(self, _spectra=dict(self._spectra))

    def save(self, path: str | os.PathLike[str], *, spectra: bool = True) -> Path:
        """Write `path` and, unless `spectra` is False, the eigenvalues beside it. Both appear whole or not at all.

        Killed at any moment, it leaves the old report or the new one, with its eigenvalues.

        Args:
            path: a `.json` file.
            spectra: write `X.spectra.safetensors` beside `X.json`.

        Raises:
            SourceError: the eigenvalues come from a file that is damaged, or is another report's.
        """
        from safetensors.numpy import save

        path = checks.path("path", path)
        checks.flag("spectra", spectra)
        digest = None
        if spectra and self._spectra is not None:
            data = save({k: v for k, v in self._spectra.items() if v.size})
            digest = hashlib.sha256(data).hexdigest()
            write_pending(_spectra_path(path), data, digest)
        report = replace(self, provenance=replace_record(self.provenance, spectra_digest=digest))
        write_atomically(path, report.to_json())
        if digest is None:
            _spectra_path(path).unlink(missing_ok=True)  # of the report that was replaced
        else:
            settle(_spectra_path(path), digest)
        return path

    def to_json(self) -> bytes:
        """The report as one JSON object, the content of the saved file."""
        return msgspec.json.encode(
            _ReportFile(
                schema=REPORT.schema,
                source=self.source,
                settings=self.settings,
                complete=self.complete,
                records=self.records,
                function=self.function,
                skipped=self.skipped,
                summary=self.summary,
                provenance=self.provenance,
            )
        )

    def _without_spectra(self) -> str:
        if self.provenance.spectra_digest is None:
            return "this report carries no eigenvalues (saved with spectra=False)"
        return "the file with the eigenvalues of this report is missing: copy X.spectra.safetensors beside X.json"

    def _missing(self, wanted: str, *, randomized: bool) -> str:
        record = next((r for r in (*self.records, *self.function) if r.key == wanted), None)
        if record is None:
            example = self.records[0].key if self.records else ""
            return f"the report has no matrix '{wanted}'; its names look like '{example}'"
        if not randomized:
            return f"{self.source}: '{wanted}' has no eigenvalues: its status is {record.status}"
        if not self.settings.randomize:
            why = "analyze with randomize=True"
        elif record.rand_spectral_norm is None:
            why = f"its status is {record.status}"
        else:
            why = "the report was saved before these were kept, so analyze again with randomize=True"
        return f"{self.source}: '{wanted}' has no eigenvalues with its entries permuted: {why}"

    def _title(self) -> str:
        return f"{self.source}: {counted(len(self), 'matrix', 'matrices')}{'' if self.complete else ', incomplete'}"

    def _columns(self) -> tuple[str, ...]:
        return COLUMNS

    def _rows(self) -> tuple[ModuleRecord, ...]:
        return (*self.records, *self.function)

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        """Medians per role."""
        return _MEDIANS, [[getattr(role, name) for name in _MEDIANS] for role in self.summary.roles]


def load_report(path: str | os.PathLike[str]) -> SpectralReport:
    """Read a saved report.

    Args:
        path: the `.json` file. Eigenvalues are read from the file beside it when they are asked for.

    Raises:
        SourceError: if the file is missing, is no specdiag report, is of another schema, or has rows or
            a summary that cannot be.
    """
    path = checks.path("path", path)
    content = read_record(path, _decode_report, REPORT)
    if problem := (
        implausible_rows((*content.records, *content.function))
        or implausible_summary(content.summary)
        or implausible_digest(content.provenance.spectra_digest)
    ):
        raise SourceError(f"{path} is damaged ({shortened(problem)}); {REPORT.remedy}")
    beside, digest = _spectra_path(path), content.provenance.spectra_digest
    return SpectralReport(
        source=content.source,
        settings=content.settings,
        records=content.records,
        function=content.function,
        skipped=content.skipped,
        summary=content.summary,
        provenance=content.provenance,
        complete=content.complete,
        _spectra=_saved_spectra(beside, digest, (*content.records, *content.function))
        if digest and is_there(beside, digest)
        else None,
    )


def spectrum_key(name: str, *, randomized: bool = False) -> str:
    """Return the name that a spectrum is stored under.

    A matrix whose own name is like that of a randomised spectrum gets a space at its end: each name has one spectrum.
    """
    if randomized:
        return name + _RANDOMIZED
    return f"{name} " if name.rstrip(" ").endswith(_RANDOMIZED) else name


def is_report(path: Path) -> bool:
    """Return True for JSON that opens with its schema, and for a report that another program formatted anew."""
    return read_start(path, 16).startswith(b'{"schema":') or kind_of_file(path) is REPORT


def _spectra_path(path: Path) -> Path:
    return path.with_suffix(".spectra.safetensors")


def _saved_spectra(path: Path, digest: str, records: Iterable[ModuleRecord]) -> SavedSpectra:
    records = [record for record in records if record.n_eigenvalues]
    sizes = {spectrum_key(r.key): r.n_eigenvalues for r in records}
    permuted = {spectrum_key(r.key, randomized=True): r.n_eigenvalues for r in records}
    return SavedSpectra(path, digest, sizes, permuted)
