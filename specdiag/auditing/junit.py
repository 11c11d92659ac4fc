"""Audits as JUnit XML, which test reports of pipelines read. Names come from untrusted files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from specdiag.auditing import wording
from specdiag.auditing.outcomes import Outcome
from specdiag.auditing.records import SEVERITIES, AuditReport, Finding, Severity
from specdiag.text.counts import counted
from specdiag.text.printable import printable

_COUNTED = ("tests", "failures", "errors", "skipped")


def to_junit(outcomes: Iterable[Outcome], fail_on: Severity) -> bytes:
    """Write audits as one JUnit file: a suite for each source, a case for each check.

    Args:
        outcomes: the audits, in the order of the sources.
        fail_on: the mildest severity that is a failure. Milder findings are the output of a case that passes.

    Returns:
        The XML. A check that was not made is skipped, with its reason; a source that was not audited is an error.
    """
    root = Element("testsuites", name="specdiag audit")
    for outcome in outcomes:
        root.append(_suite(outcome, fail_on))
    for name in _COUNTED:
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ElementTree.indent(root, " ")
    return _inert(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(outcome: Outcome, fail_on: Severity) -> Element:
    source = printable(outcome.source)
    suite = Element("testsuite", name=source)
    if outcome.audit is None:
        case = SubElement(suite, "testcase", classname=source, name="read")
        SubElement(case, "error", message=printable(outcome.error), type=str(outcome.code))
    else:
        if told := wording.reservation(outcome.audit.coverage):
            SubElement(SubElement(suite, "properties"), "property", name="verdict", value=told.removeprefix(", "))
        suite.extend(_cases(outcome.audit, source, fail_on))
    kinds = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for name, tag in kinds.items():
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    return suite


def _cases(audit: AuditReport, source: str, fail_on: Severity) -> Iterable[Element]:
    groups = {group[0].check: group for group in wording.groups(audit)}
    for check in (*audit.coverage.checks, *audit.coverage.not_checked):
        case = Element("testcase", classname=source, name=check)
        if reason := audit.coverage.not_checked.get(check):
            SubElement(case, "skipped", message=printable(reason))
        elif group := groups.get(check):
            _tell(case, group, fail_on)
        if told := [wording.excuse(e) for e in audit.coverage.excused if e.check == check and e.findings]:
            SubElement(case, "system-out").text = "\n".join(told)
        yield case


def _tell(case: Element, group: Sequence[Finding], fail_on: Severity) -> None:
    severity = group[0].severity
    listed = "\n".join(printable(wording.sentence(finding)) for finding in group)
    if SEVERITIES.index(severity) > SEVERITIES.index(fail_on):
        SubElement(case, "system-out").text = listed
        return
    SubElement(
        case, "failure", message=f"{counted(len(group), 'finding')}: {printable(group[0].why)}", type=severity
    ).text = listed


def _inert(xml: bytes) -> bytes:
    """Spell out, as the same characters to XML, what the log of a pipeline would take for a command."""
    return xml.replace(b"::", b":&#58;").replace(b"##[", b"##&#91;")
