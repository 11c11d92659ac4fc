"""The records of an audit: findings, coverage, and the answer of the decay check."""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

import msgspec

from specdiag.decay.schedule_record import LrShape
from specdiag.files import json_decoder
from specdiag.function.alarm_records import Alarms
from specdiag.records import Record, Source
from specdiag.storage.kinds import AUDIT, read_record
from specdiag.storage.result import Result
from specdiag.text import checks
from specdiag.text.printable import printable

Severity = Literal["fail", "warn", "info"]
Value = int | float | str
AuditVerdict = Literal["pass", "warn", "fail"]
DecayVerdict = Literal["consistent", "inconsistent", "cannot tell"]

SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The worst first."""
NO_CONFIG = "a report does not carry config.json: audit the checkpoint"
"""Reason of the checks that need the checkpoint itself and were given a report."""
SELECTION = "only a selection of the matrices was asked for"
"""Reason of the checks that need every matrix."""


class Finding(Record, frozen=True, kw_only=True):
    """A fault, or a fact worth knowing."""

    check: str
    severity: Severity
    module: str | None = None
    """The matrix, tensor or layer; None where it is the whole checkpoint."""
    file: str | None = None
    """Weight file that holds the module, relative to the source; None where it is in none, or a report was audited."""
    value: Value
    """Finding: a number in the metric of the check, or words."""
    threshold: float | None = None
    """Limit, or the configuration's value, that it was compared with. None where every observation is a finding."""
    why: str
    """Why it matters."""
    advice: str
    """Action to take."""


class Excused(Record, frozen=True, kw_only=True):
    """The findings that `ignore` in a file of thresholds takes from the verdict."""

    check: str
    pattern: str
    reason: str
    findings: tuple[Finding, ...] = ()
    """Empty where the pattern matched no finding."""


class Coverage(Record, frozen=True, kw_only=True):
    """Checks that ran, those that did not, and findings that were excused."""

    n_tensors: int
    n_matrices: int
    n_others: int | None = None
    """Norm gains, biases and other small tensors whose values were read; None where only a report was there."""
    checks: tuple[str, ...]
    """Ids of the checks that were made."""
    not_checked: dict[str, str]
    """The others, with the reason."""
    files: dict[str, str]
    """The other weight files of the repository, and what was done with each: `values`, compared, or why nothing."""
    names_alone: str | None = None
    """The reason why names and shapes alone were checked, without transformers' own model; None where it was used."""
    own_code: bool = False
    """True where the repository brings code of its own (auto_map), which was not looked at."""
    notes: tuple[str, ...] = ()
    """Remarks from reading the checkpoint."""
    excused: tuple[Excused, ...] = ()
    """Entries, by pattern of `ignore`."""


class DecayAnswer(Record, frozen=True, kw_only=True):
    """Answer whether the weights are as large as a stated decay predicts. It never names the decay that was used."""

    answer: DecayVerdict
    reason: str
    weight_decay: float
    lr: float
    steps: int | None = None
    lr_shape: LrShape | None = None
    warmup: int = 0
    final_lr: float | None = None
    initial_rms: float | None = None
    """Root mean square of the weights before the first step; None where it was not stated, as for the others."""
    expected_low: float
    """Least root mean square of a weight that the stated decay explains. Where they are not stated the start is balance
    at the peak, the schedule constant or a cosine to zero, and lr x decay x steps 1 to 100."""
    expected_high: float
    """Largest, likewise."""
    possible_low: float
    """Least from any start between 0 and He's initialisation, of straight lines, and to a tenth of the peak too."""
    possible_high: float
    """Largest, likewise. `inconsistent` weights lie outside of this range."""
    rms_low: float | None = None
    """First quartile over the matrices of attention and MLP."""
    rms_median: float | None = None
    rms_high: float | None = None
    """Third quartile."""
    n_matrices: int
    assumptions: tuple[str, ...]


class TokenRow(Record, frozen=True, kw_only=True):
    """A row of a table of tokens."""

    row: int
    text: str | None = None
    """The token as the tokenizer stores it; None where that is not known."""
    score: float
    """Cosine to the mean of the reference rows, without the mean and the first component of the table."""
    norm: float
    """Its norm, over the median of the rows."""
    equal_to: int | None = None
    """The first row of the same values, where it is another one."""


class TokenTable(Record, frozen=True, kw_only=True):
    """An embedding of tokens or a head: rows that training hardly touched, and rows that stand for no token."""

    name: str
    rows: int
    cols: int
    dequantized: bool = False
    tokenizer: str | None = None
    """File that the tokens were read from."""
    no_tokenizer: str | None = None
    """The reason why the tokens are not known."""
    n_reserved: int = 0
    """Rows of tokens that no text gives, by their names."""
    n_padding: int = 0
    """Rows that the tokenizer has no token for; without it equal rows at the end."""
    n_zero: int = 0
    n_equal: int = 0
    """Other rows than these that are equal to another row, bit for bit."""
    n_missing: int = 0
    """Tokens of the tokenizer that the table has no row for."""
    reference: Literal["reserved", "densest"] | None = None
    """The rows that the others are compared with; None where there are no scores."""
    n_reference: int = 0
    coherence: float | None = None
    """Mean cosine between the reference rows."""
    no_scores: str | None = None
    """The reason why there are no scores."""
    n_like: int = 0
    """Rows that score above 0.5, but for reserved, padding and zero ones."""
    tokens: tuple[TokenRow, ...] = ()
    """Those with the highest scores, as many as were asked for."""


class AuditReport(Result, Record, frozen=True, kw_only=True):
    """The result of `audit`.

    Example:
        >>> found = specdiag.audit("org/name")
        >>> [finding.module for finding in found.findings if finding.check == "nonfinite"]
        []
    """

    schema: int = AUDIT.schema
    source: Source
    baseline: Source | None = None
    verdict: AuditVerdict
    """The worst severity; `pass` where there is nothing, or information only."""
    counts: dict[str, int]
    """Number of findings by severity."""
    findings: tuple[Finding, ...]
    """The worst first, by check in the order of the table, by module in stored order."""
    coverage: Coverage
    decay: DecayAnswer | None = None
    tokens: tuple[TokenTable, ...] = ()
    """Tables of tokens, where `tokens=` asked for them."""
    alarms: Alarms | None = None
    """Removed directions, massive channels and bounds, where `alarms=True` asked for them."""

    def at_least(self, severity: Severity) -> tuple[Finding, ...]:
        """Find the findings of some severity and worse.

        Args:
            severity: the mildest one.
        """
        return tuple(f for f in self.findings if SEVERITIES.index(f.severity) <= SEVERITIES.index(severity))

    def to_json(self) -> bytes:
        """Encode the audit as one JSON object, the content of its file. Names that are no Unicode are spelled out."""
        try:
            data = msgspec.json.encode(self)
        except UnicodeEncodeError:  # a file of the folder whose name is no UTF-8
            data = msgspec.json.encode(_spelt(msgspec.to_builtins(self)))
        return msgspec.json.format(data, indent=1)

    def _title(self) -> str:
        counts = ", ".join(f"{n} {severity}" for severity, n in self.counts.items() if n) or "no findings"
        return f"{self.verdict.upper()}: {self.source}: {counts}"

    def _columns(self) -> tuple[str, ...]:
        return Finding.__struct_fields__

    def _rows(self) -> tuple[Finding, ...]:
        return self.findings

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("severity", "check", "module", "value", "threshold")
        return names, [[getattr(finding, name) for name in names] for finding in self.findings]


def load_audit(path: str | os.PathLike[str]) -> AuditReport:
    """Read a saved audit.

    Args:
        path: a file of `AuditReport.save`, or of `specdiag audit -o`.

    Returns:
        The audit.

    Raises:
        SourceError: the file is missing, is no audit, or is of another schema.
    """
    return read_record(checks.path("path", path), _decode, AUDIT)


def _spelt(part: object) -> object:
    if isinstance(part, str):
        return printable(part)
    if isinstance(part, dict):
        return {key: _spelt(value) for key, value in cast("dict[str, object]", part).items()}
    return [_spelt(value) for value in cast("list[object]", part)] if isinstance(part, list | tuple) else part


_decode = json_decoder(AuditReport)
