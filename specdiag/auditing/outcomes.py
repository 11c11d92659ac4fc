"""Audits of several sources: each has its audit, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specdiag.auditing.records import AuditReport, Finding
from specdiag.auditing.thresholds import default_checks

CONFIG = "config.json"


@dataclass(frozen=True)
class Outcome:
    """The audit of a source, or the reason why there is none.

    Attributes:
        source: as it was typed.
        audit: its audit; None where it could not be audited.
        error: the sentence that says why.
        code: exit code that stands for this error; 0 without one.
        report: the file, where a saved report was audited.
    """

    source: str
    audit: AuditReport | None = None
    error: str = ""
    code: int = 0
    report: Path | None = None

    @property
    def is_local(self) -> bool:
        """True where the source lies on this machine; False for a model of the hub, and where nothing is known."""
        return self.report is not None or (self.audit is not None and self.audit.source.kind in ("dir", "file"))

    def file_of(self, finding: Finding) -> str:
        """Name the file that a finding is about, as a path; of a model of the hub the path in its repository.

        That is the weight file that holds the module, or config.json where a check goes by it. A finding of the whole
        checkpoint is placed at its first weight file, and all findings of a saved report at the report.

        Args:
            finding: of this audit.
        """
        if self.report is not None:
            return str(self.report)
        if self.audit is None:
            return self.source
        source = self.audit.source
        folder = Path(source.location) if source.kind == "dir" else Path(source.location).parent
        if source.kind == "hub":
            folder = Path()
        return str(folder / _name(finding, source.files))


def _name(finding: Finding, files: tuple[str, ...]) -> str:
    check = default_checks().get(finding.check)
    if finding.check == "config" or (check is not None and check.needs == "checkpoint"):
        return CONFIG
    return finding.file or next(iter(files), CONFIG)
