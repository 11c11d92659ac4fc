"""Where the answer of `specdiag analyze` goes, and under which name its report is saved."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import UsageError

from . import options, partial, targets

if TYPE_CHECKING:
    from specdiag.records import Source
    from specdiag.reference.ranges import ReferenceRanges

_DEFAULTS = {"seed": 0}


@dataclass(frozen=True)
class Target:
    """Where the answer goes: `format` to stdout, or to `out`; for a table, `out` is the saved report."""

    format: str
    out: Path | None
    spectra: bool
    all_rows: bool
    summary: bool = False
    top: int | None = None
    reference: ReferenceRanges | None = None
    """Ranges to hold the matrices against; None for those that come with specdiag."""
    reopening: str = ""
    """The options that the source was opened with, as they would be typed again."""

    @classmethod
    def of(
        cls, format: str, out: Path | None, *, spectra: bool, all_rows: bool, top: int | None, summary: bool,
        reference: Path | None,
    ) -> Target:  # fmt: skip
        """The target of the options, checked before any work."""
        from specdiag.reference.ranges import load_reference

        idle = {"--all": all_rows, "--top": top, f"-f {format}": format != "table", "--reference": reference}
        if summary and (idle := options.named(idle)):
            raise UsageError(f"--summary is one line: leave out {idle}")
        options.check_rows(all_rows=all_rows, top=top, format=format, reference=reference)
        if format == "parquet" and out is None:
            raise UsageError("parquet is binary; name a file with -o")
        report = format in ("table", "json")
        targets.check_file(out, format, "choose -f csv, md or parquet" if report else "choose -f json")
        ranges = None if reference is None else load_reference(reference)
        return cls(format, out, spectra, all_rows, summary, top, ranges)

    def opened(self, opening: Mapping[str, object]) -> Target:
        """The same, for a source that was opened with these arguments."""
        given = {
            name: value
            for name, value in opening.items()
            if value not in (None, False, _DEFAULTS.get(name)) and name != "revision"
        }
        typed = (
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
            for name, value in given.items()
        )
        return replace(self, reopening="".join(f" {option}" for option in typed))

    def saving(self, source: Source, *, selected: bool, picked: object = None) -> Target:
        """For a table without -o: the report is saved under the source's own name in the working directory.

        A selection of matrices is saved beside, not over, the report of them all, an adapter applied to its base
        beside the report of its updates, and one file or part of several under its own name. Runs have checkpoints of
        equal names: where the report of another source has the name, that of the folder goes before it.
        """
        from specdiag.checkpoint.source import cached_repository
        from specdiag.files import check_writable

        if self.format != "table" or self.out is not None:
            return self
        path = Path(os.path.abspath(source.location))  # noqa: PTH100 - a link is called by its own name
        stem = source.location
        if source.kind in ("dir", "file"):
            repository = cached_repository(path)
            stem = path.name if repository is None else repository
            if repository is not None and source.kind == "file":
                stem = f"{repository}.{path.name}"
        stem = ".".join([stem, *(str(name) for name in (picked, source.part) if name is not None)])
        ending = (".merged" if source.base is not None else "") + (".selected" if selected else "") + ".specdiag.json"
        out = Path(_as_file_name(stem) + ending)
        if _is_of_another(out, source):
            out = Path(_as_file_name(f"{path.parent.name}/{stem}" if source.kind != "hub" else f"hub/{stem}") + ending)
        check_writable(out)
        return replace(self, out=out)

    def for_a_partial_report(self, rank: int = 0) -> Target:
        """Beside a file that is there already, never over it: what took an hour is not lost to Ctrl-C.

        With its eigenvalues always: without them it could not be gone on from.
        """
        if not self.is_report:
            return self
        assert self.out is not None
        beside = rank > 0 or self.out.exists()
        return replace(self, out=partial.place(self.out, rank) if beside else self.out, spectra=True)

    @property
    def is_report(self) -> bool:
        """True where a report is saved, which an interrupted analysis can go on from."""
        return self.format in ("table", "json") and self.out is not None


def _as_file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "--", text).strip("-.")


def _is_of_another(path: Path, source: Source) -> bool:
    """True where a report of another source is saved there."""
    from specdiag.errors import SourceError
    from specdiag.report import is_report, load_report

    if not is_report(path):
        return False
    try:
        held = load_report(path).source
    except SourceError:
        return False
    places = [Path(s.location).resolve() if s.kind in ("dir", "file") else s.location for s in (held, source)]
    return places[0] != places[1]
