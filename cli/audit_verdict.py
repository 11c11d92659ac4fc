"""The end of `specdiag audit`: its exit code, and the line that says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from specdiag.text.counts import counted

if TYPE_CHECKING:
    from specdiag.auditing.outcomes import Outcome
    from specdiag.auditing.records import Severity

_NOUNS: dict[Severity, str] = {"fail": "failure", "warn": "warning"}
_NOT_AUDITED = {2: "could not be audited as asked", 3: "could not be read", 4: "could not be computed"}


class End(NamedTuple):
    """How the audit of a source ended: its findings by severity, or the exit code of the error that it met."""

    counts: Mapping[str, int] | None
    code: int = 0

    @classmethod
    def of(cls, outcome: Outcome) -> End:
        """The end of an outcome."""
        return cls(None if outcome.audit is None else outcome.audit.counts, outcome.code)


def exit_code(ends: Sequence[End], fail_on: Severity) -> int:
    """1 where a source has a finding of that severity or worse, else the smallest code of an error, else 0."""
    codes = {1 if _fails(end, fail_on) else end.code for end in ends} - {0}
    return min(codes, default=0)


def reason(ends: Sequence[End], fail_on: Severity) -> str:
    """The verdict with its reason in a line, and the sources counted where there are several."""
    counts = Counter[str]()
    for end in ends:
        counts.update(end.counts or {})
    named = {severity: counted(counts[severity], noun) for severity, noun in _NOUNS.items()}
    deciding = [named[s] for s in _NOUNS if s in _reach(fail_on) and counts[s]]
    if deciding:
        why = f"failed because --fail-on {fail_on}: {' and '.join(deciding)}"
    elif lost := Counter(end.code for end in ends if end.code):
        told = (f"{counted(n, 'source')} {_NOT_AUDITED[code]}" for code, n in sorted(lost.items()))
        why = f"not passed because {', '.join(told)}"
    else:
        why = f"passed because --fail-on {fail_on}: {', '.join(named.values())}"
    return why if len(ends) == 1 else f"{why}; {_sources(ends, fail_on)}"


def _sources(ends: Sequence[End], fail_on: Severity) -> str:
    said = [_NOT_AUDITED[e.code] if e.counts is None else "failed" if _fails(e, fail_on) else "passed" for e in ends]
    counts = Counter(said)
    listed = (f"{counts[how]} {how}" for how in ("passed", "failed", *_NOT_AUDITED.values()) if counts[how])
    return f"{len(ends)} sources: {', '.join(listed)}"


def _fails(end: End, fail_on: Severity) -> bool:
    return end.counts is not None and any(end.counts[severity] for severity in _reach(fail_on))


def _reach(fail_on: Severity) -> tuple[Severity, ...]:
    return ("fail",) if fail_on == "fail" else ("fail", "warn")
