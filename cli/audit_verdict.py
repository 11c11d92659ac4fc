"""The end of `specdiag audit`: its exit code, and the line that says why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from specdiag.auditing.outcomes import Outcome
    from specdiag.auditing.records import Severity

_NOUNS: dict[Severity, str] = {"fail": "failure", "warn": "warning"}
_NOT_AUDITED = {2: "could not be audited as asked", 3: "could not be read", 4: "could not be computed"}


def exit_code(outcomes: Sequence[Outcome], fail_on: Severity) -> int:
    """1 where a source has a finding of that severity or worse, else the smallest code of an error, else 0."""
    codes = {1 if _fails(outcome, fail_on) else outcome.code for outcome in outcomes} - {0}
    return min(codes, default=0)


def reason(outcomes: Sequence[Outcome], fail_on: Severity) -> str:
    """The verdict with its reason in a line, and the sources counted where there are several."""
    counts = Counter[str]()
    for outcome in outcomes:
        counts.update(outcome.audit.counts if outcome.audit is not None else {})
    named = {severity: _counted(counts[severity], noun) for severity, noun in _NOUNS.items()}
    deciding = [named[s] for s in _NOUNS if s in _reach(fail_on) and counts[s]]
    if deciding:
        why = f"failed because --fail-on {fail_on}: {' and '.join(deciding)}"
    elif lost := Counter(outcome.code for outcome in outcomes if outcome.code):
        told = (f"{_counted(n, 'source')} {_NOT_AUDITED[code]}" for code, n in sorted(lost.items()))
        why = f"not passed because {', '.join(told)}"
    else:
        why = f"passed because --fail-on {fail_on}: {', '.join(named.values())}"
    return why if len(outcomes) == 1 else f"{why}; {_sources(outcomes, fail_on)}"


def _sources(outcomes: Sequence[Outcome], fail_on: Severity) -> str:
    ends = [_NOT_AUDITED[o.code] if o.audit is None else "failed" if _fails(o, fail_on) else "passed" for o in outcomes]
    counts = Counter(ends)
    listed = (f"{counts[end]} {end}" for end in ("passed", "failed", *_NOT_AUDITED.values()) if counts[end])
    return f"{len(outcomes)} sources: {', '.join(listed)}"


def _fails(outcome: Outcome, fail_on: Severity) -> bool:
    return outcome.audit is not None and bool(outcome.audit.at_least(fail_on))


def _reach(fail_on: Severity) -> tuple[Severity, ...]:
    return ("fail",) if fail_on == "fail" else ("fail", "warn")


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
