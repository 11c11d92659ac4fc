"""Audits as SARIF 2.1.0, which code scanning and editors read. Names come from untrusted files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from specdiag.auditing import locations, wording
from specdiag.auditing.outcomes import Outcome
from specdiag.auditing.records import SEVERITIES, Finding, Severity
from specdiag.auditing.thresholds import Check
from specdiag.system.distributions import version
from specdiag.text.printable import printable

MOST = 25_000
"""Results of a run that GitHub accepts."""
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS: dict[Severity, str] = {"fail": "error", "warn": "warning", "info": "note"}

_Object: TypeAlias = dict[str, object]


def to_sarif(
    outcomes: Sequence[Outcome],
    checks: Mapping[str, Check],
    *,
    root: Path,
    elsewhere: str | None = None,
    exit_code: int = 0,
) -> bytes:
    """Write audits as one SARIF log with one run.

    Args:
        outcomes: the audits, in the order of the sources.
        checks: every check by id, with the thresholds that held.
        root: of the repository that the locations are relative to.
        elsewhere: path in the repository at which findings of sources outside of it are shown.
        exit_code: of the command.

    Returns:
        The log as JSON. Beyond `MOST` results the mildest are left out, and counted in a notification.
    """
    found = [(outcome, f) for outcome in outcomes if outcome.audit is not None for f in outcome.audit.findings]
    found.sort(key=lambda pair: SEVERITIES.index(pair[1].severity))
    kept, left = found[:MOST], len(found) - MOST
    indices = {check: i for i, check in enumerate(checks)}
    notifications = [n for outcome in outcomes for n in _notifications(outcome)]
    if left > 0:
        notifications.append(_notification("warning", f"{left} further findings are left out: at most {MOST} fit"))
    run: _Object = {
        "tool": {"driver": _driver(checks)},
        "invocations": [
            {
                "executionSuccessful": all(outcome.audit is not None for outcome in outcomes),
                "exitCode": exit_code,
                "toolExecutionNotifications": notifications,
            }
        ],
        "columnKind": "utf16CodeUnits",
        "results": list(_results(kept, indices, root, elsewhere)),
    }
    log: _Object = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=1)


def _driver(checks: Mapping[str, Check]) -> _Object:
    released = version("specdiag")
    return {"name": "specdiag", "version": released, "rules": [_rule(check) for check in checks.values()]}


def _rule(check: Check) -> _Object:
    return {
        "id": check.id,
        "shortDescription": _message(wording.capitalised(f"{check.metric}.")),
        "fullDescription": _message(wording.capitalised(f"{check.why}.")),
        "help": _message(f"What to do: {check.advice}. Source of the threshold: {check.origin}."),
        "defaultConfiguration": {"enabled": check.enabled, "level": _LEVELS[check.severity]},
    }


def _results(
    found: Iterable[tuple[Outcome, Finding]], indices: Mapping[str, int], root: Path, elsewhere: str | None
) -> Iterator[_Object]:
    seen: Counter[str] = Counter()
    places = locations.Places(root)
    for outcome, finding in found:
        inside = places.of(outcome, finding)
        path = inside or elsewhere or outcome.file_of(finding)
        hashed = _fingerprint(outcome if inside is None else None, path, finding)
        seen[hashed] += 1
        told = wording.sentence(finding)
        yield {
            "ruleId": finding.check,
            **({"ruleIndex": indices[finding.check]} if finding.check in indices else {}),
            "level": _LEVELS[finding.severity],
            "message": _message(told if inside is not None else f"{outcome.source}: {told}"),
            "locations": [_location(path, finding.module)],
            "partialFingerprints": {"primaryLocationLineHash": f"{hashed}:{seen[hashed]}"},
        }


def _location(path: str, module: str | None) -> _Object:
    location: _Object = {
        "physicalLocation": {
            "artifactLocation": {"uri": locations.uri(path), "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": 1},  # GitHub shows no result without a line
        }
    }
    if module is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": printable(module), "kind": "module"}]
    return location


def _fingerprint(outside: Outcome | None, path: str, finding: Finding) -> str:
    """Hash where a finding is and what it is about. Values and commits differ from one upload to the next."""
    source = outside.audit.source.location if outside is not None and outside.audit is not None else ""
    parts = (source, path, finding.check, finding.module or "")
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]


def _notifications(outcome: Outcome) -> Iterator[_Object]:
    if outcome.audit is None:
        yield _notification("error", f"{outcome.source} was not audited: {outcome.error}")
        return
    yield _notification("note", wording.headline(outcome.audit))
    for line in wording.coverage(outcome.audit):
        yield _notification("note", f"{outcome.source}: {line}")


def _notification(level: str, text: str) -> _Object:
    return {"level": level, "message": _message(text)}


def _message(text: str) -> _Object:
    r"""Make a message that is read as it stands: braces are placeholders in SARIF, and `[a](b)` is a link."""
    text = printable(text).replace("{", "{{").replace("}", "}}")
    return {"text": text.replace("[", r"\[").replace("]", r"\]") if "](" in text else text}
