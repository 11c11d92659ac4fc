"""Findings beside their files, where GitHub Actions shows them: a few of each kind, the rest counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.text.printable import printable

from . import output, workflow

if TYPE_CHECKING:
    from specdiag.auditing.locations import Places
    from specdiag.auditing.outcomes import Outcome
    from specdiag.auditing.records import Severity

_KINDS: dict[Severity, str] = {"fail": "error", "warn": "warning"}
_TITLE = "specdiag audit"


def annotate(outcomes: Sequence[Outcome]) -> None:
    """Print the annotations of failures and warnings."""
    from specdiag.auditing.locations import Places, repository_root

    places = Places(repository_root(Path()))
    kinds: dict[str, list[str]] = {kind: [] for kind in _KINDS.values()}
    for outcome in outcomes:
        for kind, line in _lines(outcome, places):
            kinds[kind].append(line)
    for kind, lines in kinds.items():
        shown = lines if len(lines) <= workflow.MOST else lines[: workflow.MOST - 1]
        for line in shown:
            output.command(line)
        if left := len(lines) - len(shown):
            more = f"{left} more {kind}s: GitHub shows {workflow.MOST} a step, the output of the step has all"
            output.command(workflow.annotation(kind, more, {"title": _TITLE}))


def _lines(outcome: Outcome, places: Places) -> Iterator[tuple[str, str]]:
    from specdiag.auditing import wording

    source = printable(outcome.source)
    if outcome.audit is None:
        yield "error", workflow.annotation("error", f"{source}: {printable(outcome.error)}", {"title": _TITLE})
        return
    for finding in outcome.audit.findings:
        if (kind := _KINDS.get(finding.severity)) is not None:
            place = places.of(outcome, finding)
            told = wording.sentence(finding)
            yield (
                kind,
                workflow.annotation(
                    kind,
                    told if place is not None else f"{source}: {told}",
                    {"file": None if place is None else printable(place), "title": f"{_TITLE}: {finding.check}"},
                ),
            )
