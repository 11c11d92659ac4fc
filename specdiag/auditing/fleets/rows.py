"""The rows of a fleet's table: one for each model, and below it one for each of its findings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec

from specdiag.auditing import wording
from specdiag.auditing.outcomes import Outcome
from specdiag.auditing.records import AuditReport, Finding
from specdiag.files import json_decoder
from specdiag.records import Record
from specdiag.system.distributions import version
from specdiag.text.printable import printable


class FleetRow(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A row of the table. A column that says nothing of its kind of row is None."""

    kind: Literal["model", "finding"]
    source: str
    """The model as it was named; findings belong to the model row of this name."""
    location: str | None = None
    """`org/name`, or a path; None where nothing was audited."""
    commit: str | None = None
    """The commit that was audited, of a model of the hub."""
    fingerprint: str | None = None
    """Hash of the names, sizes and times of the files, of a local model."""
    verdict: Literal["pass", "warn", "fail", "error"] | None = None
    """Model: the worst severity of its findings; `error` where it could not be audited."""
    error: str | None = None
    """Model: the sentence that says why it could not be audited."""
    exit_code: int | None = None
    """Model: the exit code that stands for this error."""
    n_fail: int | None = None
    n_warn: int | None = None
    n_info: int | None = None
    n_tensors: int | None = None
    n_matrices: int | None = None
    n_checks: int | None = None
    """Model: number of checks that were made."""
    coverage: str | None = None
    """Model: checks that were made and not made, other weight files and remarks, as JSON."""
    decay: str | None = None
    """Model: the answer on a stated weight decay."""
    settings: str | None = None
    """Model: the options that it was audited with."""
    specdiag: str | None = None
    """Model: version of specdiag that audited it."""
    audited: str | None = None
    """Model: when that was."""
    check: str | None = None
    severity: Literal["fail", "warn", "info"] | None = None
    module: str | None = None
    """Finding: the matrix, tensor or layer; None for the whole checkpoint."""
    file: str | None = None
    """Finding: weight file that holds the module."""
    value: float | None = None
    """Finding: the number that was found; None where it is words."""
    words: str | None = None
    """Finding: the value in words, with its unit."""
    threshold: float | None = None
    why: str | None = None
    advice: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings by severity."""
        return {"fail": self.n_fail or 0, "warn": self.n_warn or 0, "info": self.n_info or 0}


def rows_of(outcome: Outcome, *, settings: str, fingerprint: str | None) -> tuple[FleetRow, ...]:
    """Make the rows of a model: its own, then one for each finding.

    Args:
        outcome: its audit, or why there is none.
        settings: the options that it was audited with.
        fingerprint: of its files before they were read; None for a model of the hub.
    """
    model = FleetRow(
        kind="model",
        source=outcome.source,
        fingerprint=fingerprint,
        settings=settings,
        specdiag=version("specdiag"),
        audited=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if outcome.audit is None:
        failed = msgspec.structs.replace(model, verdict="error", error=outcome.error, exit_code=outcome.code)
        return (_in_unicode(failed),)
    audit = outcome.audit
    rows = (_audited(model, audit), *(_found(finding, outcome.source, audit) for finding in audit.findings))
    return tuple(map(_in_unicode, rows))


def are_whole(rows: Sequence[FleetRow]) -> bool:
    """Tell whether rows are those of one model, with all of its findings below it.

    Args:
        rows: at least one.
    """
    model, *findings = rows
    expected = [severity for severity, n in model.counts.items() for _ in range(n)]
    found = [row.severity for row in findings if (row.kind, row.source) == ("finding", model.source)]
    return model.kind == "model" and len(found) == len(findings) and sorted(map(str, found)) == sorted(expected)


def _audited(model: FleetRow, audit: AuditReport) -> FleetRow:
    covered = audit.coverage
    return msgspec.structs.replace(
        model,
        location=audit.source.location,
        commit=audit.source.commit,
        verdict=audit.verdict,
        n_fail=audit.counts["fail"],
        n_warn=audit.counts["warn"],
        n_info=audit.counts["info"],
        n_tensors=covered.n_tensors,
        n_matrices=covered.n_matrices,
        n_checks=len(covered.checks),
        coverage=msgspec.json.format(_fields(audit.to_json())["coverage"], indent=-1).decode(),
        decay=None if audit.decay is None else audit.decay.answer,
    )


def _found(finding: Finding, source: str, audit: AuditReport) -> FleetRow:
    return FleetRow(
        kind="finding",
        source=source,
        location=audit.source.location,
        commit=audit.source.commit,
        check=finding.check,
        severity=finding.severity,
        module=finding.module,
        file=finding.file,
        value=None if isinstance(finding.value, str) else float(finding.value),
        words=wording.value(finding),
        threshold=finding.threshold,
        why=finding.why,
        advice=finding.advice,
    )


def _in_unicode(row: FleetRow) -> FleetRow:
    """Write out half characters, which names of files may have and no text of a table."""
    texts = {name: value for name, value in msgspec.structs.asdict(row).items() if isinstance(value, str)}
    odd = {name: printable(text) for name, text in texts.items() if not _is_unicode(text)}
    return msgspec.structs.replace(row, **odd) if odd else row


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


_fields = json_decoder(dict[str, msgspec.Raw])
