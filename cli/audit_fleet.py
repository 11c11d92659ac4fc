"""Many models into one table: what is done is kept as it is made, and taken by the next call."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import SourceError, UsageError
from specdiag.system import interrupts

from . import audit_output as show
from . import audit_sources, options, output
from .audit_verdict import End
from .sharing import Given

if TYPE_CHECKING:
    from specdiag.auditing.fleets.journal import Journal
    from specdiag.auditing.fleets.rows import FleetRow

_AT_ONCE = 256
"""Models that are taken from an older table in one write."""


def target(out: Path | None) -> Path:
    """The file of the table, checked before any work."""
    from specdiag.files import is_stream
    from specdiag.storage.pyarrow import require_pyarrow

    if out is None:
        raise UsageError("parquet is binary; name a file with -o")
    if is_stream(out):
        raise UsageError(f"--out {out} is no file, and the models that are done are kept beside it: name a file")
    require_pyarrow()
    return out


def audit_fleet(
    sources: Sequence[str], asked: options.Arguments, given: Given, listed: Container[str], out: Path
) -> list[End]:
    """Audit models one after the other into a table. Those that have not changed since they were audited are taken.

    Args:
        sources: as they were typed, each once.
        asked: arguments of the library's `audit`, but for those of the analysis.
        given: the shared options.
        listed: those that stand in a list.
        out: file of the table; what is done stands in a journal beside it until that is written.
    """
    from specdiag.auditing.fleets import identity, table
    from specdiag.auditing.fleets.journal import Journal

    settings = identity.settings(asked | given.arguments())
    path = out.with_name(f"{out.name}.partial.jsonl")
    with Journal(path) as journal:
        fleet = _Fleet(journal, settings, len(sources), audit_sources.with_kept_baseline(asked), given, listed)
        ends: list[End] = []
        is_written = False
        try:
            _take(out, journal, set(sources))
            for source in sources:
                ends.append(fleet.end(source, len(ends) + 1))
            if fleet.n_taken:
                output.talk(f"{fleet.n_taken} of {len(sources)} models are as they were: their rows are taken", "dim")
            with interrupts.delay_signals():
                output.deliver(table.encode(row for source in sources for row in journal.rows(source)), out)
                journal.remove()
                is_written = True
        except KeyboardInterrupt:
            kept = f"kept in {path}: the same command goes on" if ends else "nothing was audited"
            kept = f"{out} is written" if is_written else kept
            journal.close()
            output.talk(f"interrupted: {len(ends)} of {len(sources)} models are done, and {kept}", "yellow")
            output.leave()
    return ends


@dataclass
class _Fleet:
    """Models that are audited alike."""

    journal: Journal
    settings: str
    n_models: int
    asked: options.Arguments
    given: Given
    listed: Container[str]
    n_taken: int = 0

    def end(self, source: str, number: int) -> End:
        """Audit a model, unless that is done."""
        from specdiag.auditing.fleets import identity
        from specdiag.auditing.fleets.rows import rows_of

        if source in self.journal:
            model = self.journal.rows(source)[0]
            if identity.is_current(model, self.settings, self.given.values.get("revision")):
                self.n_taken += 1
                return End(model.counts)
        fingerprint = identity.fingerprint(source)
        outcome = audit_sources.audit_one(source, self.asked, self.given, listed=source in self.listed)
        with interrupts.delay_signals():
            self.journal.add(rows_of(show.in_options(outcome), settings=self.settings, fingerprint=fingerprint))
        show.progress(outcome, number, self.n_models)
        return End.of(outcome)


def _take(out: Path, journal: Journal, wanted: Container[str]) -> None:
    """Put the models of an older table into the journal, but for those that are there already, or not named."""
    from specdiag.auditing.fleets import table

    if not out.exists():
        return
    try:
        models = (rows for rows in _models(table.read(out)) if rows[0].source in wanted)
        fresh = (rows for rows in models if rows[0].source not in journal)
        while some := list(islice(fresh, _AT_ONCE)):
            journal.add(*some)
    except SourceError as error:
        raise UsageError(f"--out {out} would be replaced, and is not of this command: {error}") from error


def _models(rows: Iterator[FleetRow]) -> Iterator[list[FleetRow]]:
    """Each model's rows, where all of them stand together."""
    from specdiag.auditing.fleets.rows import are_whole

    model: list[FleetRow] = []
    for row in rows:
        if row.kind == "model" and model:
            if are_whole(model):
                yield model
            model = []
        model.append(row)
    if model and are_whole(model):
        yield model
