"""Output of `specdiag audit`: tables, and data to print or save."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.text.printable import printable

from . import answer_output, door, output, tables

if TYPE_CHECKING:
    from specdiag.auditing.outcomes import Outcome
    from specdiag.auditing.records import AuditReport, Finding, Severity, TokenTable
    from specdiag.auditing.thresholds import Check

_COLOURS = {"warn": "yellow", "fail": "red"}
_STYLES = {"pass": "bold green", "warn": "bold yellow", "fail": "bold red"}


def explain(name: str, checks: Mapping[str, Check]) -> None:
    """Print a check in words."""
    from specdiag.auditing.explain import explain

    for line in explain(name, checks):
        output.console().print(line, soft_wrap=True)


def tell(audit: AuditReport, format: str, *, all_rows: bool) -> None:
    """Print the table of an audit as soon as it is made; where data go to stdout, say its verdict beside them."""
    from specdiag.auditing import wording

    if format == "table":
        _table(audit, all_rows=all_rows)
    else:
        output.talk(wording.headline(audit), _STYLES[audit.verdict])


def progress(outcome: Outcome, done: int, total: int) -> None:
    """Print how the audit of one model of a list ended. Failures are printed before."""
    from specdiag.auditing import wording

    if outcome.audit is not None:
        output.talk(f"{done}/{total} {wording.headline(outcome.audit)}", _STYLES[outcome.audit.verdict])


def show_next(audit: AuditReport, source: str, *, reopens: bool) -> None:
    """Say what one would type next.

    Args:
        audit: of the only source.
        source: as it was typed.
        reopens: True where another command opens it without further options.
    """
    commands: dict[str, str] = {}
    if audit.findings:
        commands[f"specdiag explain {audit.findings[0].check}"] = "the check, its limit and where that comes from"
    if audit.coverage.n_others is not None and audit.baseline is None and reopens:
        verify = f"specdiag verify ORIGINAL {shlex.quote(source)}"
        commands[verify] = "find transposed or exchanged tensors, which an audit misses"
    answer_output.show_next(commands)


def reason(line: str, code: int, *, below: bool) -> None:
    """Print the last line, below the tables or on stderr; a failure even where only errors are asked for."""
    style = "bold red" if code else "bold green"
    if below:
        output.console().print(line, style=style, soft_wrap=True)
    elif code:
        output.console(stderr=True).print(line, style=style, soft_wrap=True)
    else:
        output.talk(line, style)


def _table(audit: AuditReport, *, all_rows: bool) -> None:
    """Print an audit for a person."""
    from specdiag.auditing import wording

    console = output.console()
    console.print(wording.headline(audit), style=_STYLES[audit.verdict], soft_wrap=True)
    grouped = wording.groups(audit)
    if grouped:
        rows = list(_rows(grouped, all_rows=all_rows))
        console.print(tables.draw("", _columns(), rows, console.width, lambda row: _COLOURS.get(row[1], "")))
        console.print()
        for line in wording.explanations(grouped):
            console.print(line, soft_wrap=True)
    console.print()
    for table in audit.tokens:
        _tokens(table)
    _alarms(audit)
    covered = wording.coverage(audit, whole=all_rows)
    sentences = [*(wording.decay(audit.decay) if audit.decay is not None else ()), *covered]
    for sentence in sentences:
        console.print(sentence, soft_wrap=True)
    console.print()


def _tokens(table: TokenTable) -> None:
    """Print the rows of a table of tokens that score highest, and what is known of the others."""
    from specdiag.auditing import token_wording

    console = output.console()
    for sentence in token_wording.sentences(table):
        console.print(sentence, soft_wrap=True)
    if table.tokens:
        columns: list[tables.Column[tuple[str, ...]]] = [
            tables.Column(head, lambda row, i=i: row[i], right=head != "token")
            for i, head in enumerate(token_wording.HEADS)
        ]
        console.print(tables.draw("", columns, [token_wording.cells(row) for row in table.tokens], console.width))
    console.print()


def _alarms(audit: AuditReport) -> None:
    """Print what weights alone say of the outputs, where that was asked for."""
    from specdiag.auditing import alarm_wording

    if audit.alarms is None:
        return
    console = output.console()
    if audit.alarms.ranges:
        columns: list[tables.Column[tuple[str, ...]]] = [
            tables.Column(head, lambda row, i=i: row[i], right=i > 0) for i, head in enumerate(alarm_wording.HEADS)
        ]
        console.print(tables.draw("", columns, alarm_wording.rows(audit.alarms), console.width))
    for sentence in alarm_wording.sentences(audit):
        console.print(sentence, soft_wrap=True)
    console.print()


def to_json(outcomes: Sequence[Outcome]) -> bytes:
    """The audit of one source as an object, those of several as a list; an error stands in the place of its source."""
    import msgspec

    parts = [
        outcome.audit.to_json()
        if outcome.audit is not None
        else msgspec.json.encode({"source": outcome.source, "error": outcome.error, "exit_code": outcome.code})
        for outcome in outcomes
    ]
    return _inert(parts[0] if len(parts) == 1 else b"[\n" + b",\n".join(parts) + b"\n]")


def to_markdown(outcomes: Sequence[Outcome], *, all_rows: bool) -> bytes:
    """The audits one below the other."""
    from specdiag.auditing import wording

    return b"\n".join(
        wording.to_markdown(outcome.audit, all_rows=all_rows)
        if outcome.audit is not None
        else wording.error_to_markdown(outcome.source, outcome.error)
        for outcome in map(in_options, outcomes)
    )


def to_junit(outcomes: Sequence[Outcome], fail_on: Severity) -> bytes:
    """The audits as test cases."""
    from specdiag.auditing import junit

    return junit.to_junit(map(in_options, outcomes), fail_on)


def to_sarif(outcomes: Sequence[Outcome], checks: Mapping[str, Check], elsewhere: str | None, exit_code: int) -> bytes:
    """The audits as one log of code scanning."""
    from msgspec.structs import replace as changed

    from specdiag.auditing import sarif
    from specdiag.auditing.locations import repository_root

    rules = {name: changed(check, advice=door.translated(check.advice)) for name, check in checks.items()}
    worded = [in_options(outcome) for outcome in outcomes]
    root = repository_root(Path())
    return _inert(sarif.to_sarif(worded, rules, root=root, elsewhere=elsewhere, exit_code=exit_code))


def in_options(outcome: Outcome) -> Outcome:
    """The outcome with options in its sentences, where the library speaks of arguments."""
    from msgspec.structs import replace as changed

    audit = outcome.audit
    if audit is None:
        return outcome
    reasons = {check: door.translated(reason) for check, reason in audit.coverage.not_checked.items()}
    advice = {text: door.translated(text) for text in {finding.advice for finding in audit.findings}}
    findings = tuple(changed(finding, advice=advice[finding.advice]) for finding in audit.findings)
    coverage = changed(audit.coverage, not_checked=reasons)
    return replace(outcome, audit=changed(audit, coverage=coverage, findings=findings))


def _inert(data: bytes) -> bytes:
    """The same JSON without the mark that makes any line of GitHub's log a command."""
    return data.replace(b"##[", rb"##\u005b")


def _rows(grouped: Sequence[tuple[Finding, ...]], *, all_rows: bool) -> Iterator[tuple[str, ...]]:
    """Give the findings of each check, many of them in a row; a module is followed by its findings of other checks."""
    from specdiag.auditing import wording

    of_module: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    summed = {id(group) for group in grouped if not all_rows and wording.is_told_in_one(group)}
    for finding in (finding for group in grouped if id(group) not in summed for finding in group):
        if finding.module is not None:
            of_module[finding.severity, finding.module].append(finding)
    told: set[int] = set()
    for group in grouped:
        if id(group) in summed:
            value = f"{wording.summary(group)}{_limit(group[0])}"
            yield f"{len(group)} findings (--all)", group[0].severity, group[0].check, value
            continue
        for first in (finding for finding in group if id(finding) not in told):
            module = first.module
            together = [first] if module is None else of_module[first.severity, module]
            names = [printable(module or "the checkpoint"), *[""] * (len(together) - 1)]
            for name, finding in zip(names, together, strict=True):
                told.add(id(finding))
                yield name, finding.severity, finding.check, f"{wording.value(finding)}{_limit(finding)}"


def _limit(finding: Finding) -> str:
    """Write the expected value behind a value, in one cell, so that a narrow terminal loses neither."""
    from specdiag.auditing import wording

    expected = wording.expected(finding)
    return f", expected {expected}" if expected else ""


def _columns() -> list[tables.Column[tuple[str, ...]]]:
    heads = ("module", "severity", "check", "value")
    return [
        tables.Column(head, lambda row, i=i: row[i], right=False, wraps=head == "value") for i, head in enumerate(heads)
    ]
